"""What leaving experts out of a model asks of its tensors and metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from weakref import WeakKeyDictionary

from surgeon.anatomy.experts import (
    CHUNK_DIMENSION,
    EXPERT_DIMENSION,
    HASH_TABLE,
    LOOKS_LIKE_EXPERTS,
    MOST_EXPERTS,
    NOT_OF_EXPERTS,
    ONE_TENSOR_EACH,
    ROUTER,
    Experts,
    experts_of,
)
from surgeon.anatomy.pruning import TensorSlice
from surgeon.anatomy.roles import Metadata
from surgeon.gguf.values import Value, ValueType
from surgeon.layer_lists import spans
from surgeon.model.model import Model, Tensor
from surgeon.problems import Problem

ExpertSets = tuple[tuple[int, tuple[int, ...]], ...]  # (layer, its pruned experts), ascending
Edits = dict[str, Value]


@dataclass(frozen=True, eq=False)
class ExpertModel:
    """The experts of one model. count: in every layer; used: for every token (the most of all layers);

    layers: layer -> its tensors with experts in them, those of multi-token prediction included; groups, groups_used: 1
    where there are none; chunk: neighbours that share a further expert, else 1; trunk: layers below it read the text;
    faults: why none of this file can be pruned, whatever is asked for.
    """

    count: int
    used: int
    layers: dict[int, tuple[Tensor, ...]]
    groups: int
    groups_used: int
    chunk: int
    trunk: int
    anatomy: Experts | None
    faults: tuple[Problem, ...] = ()

    @property
    def unit(self) -> int:
        """The number pruned in every layer must be a multiple of it."""
        return self.groups if self.groups > 1 else self.chunk


@dataclass(frozen=True, slots=True)
class ExpertResult:
    """slices: what stays of every tensor with experts; count: experts left in each layer; notes: for the pre-flight."""

    slices: tuple[TensorSlice, ...]
    count: int
    notes: tuple[Problem, ...]


_known: WeakKeyDictionary[Model, ExpertModel] = WeakKeyDictionary()


def expert_model(model: Model) -> ExpertModel:
    """What a model's experts are; without any, `layers` is empty."""
    if model not in _known:
        found = _work_out(model)
        _known[model] = replace(found, faults=tuple(_faults(model, found)))
    return _known[model]


def _work_out(model: Model) -> ExpertModel:
    metadata = Metadata(model.architecture, model.file.kv)
    anatomy = experts_of(model.architecture)
    dimensions = EXPERT_DIMENSION | (CHUNK_DIMENSION if anatomy is not None and anatomy.chunked else {})
    layers = {}
    for layer in model.layers:
        tensors = tuple(tensor for tensor in layer.tensors if after_block(tensor) in dimensions)
        if any(after_block(tensor) == ROUTER for tensor in tensors) and len(tensors) > 1:
            layers[layer.index] = tensors
    entries = metadata.array("expert_used_count") or [metadata.integer("expert_used_count")]
    used = max((int(entry) for entry in entries if math.isfinite(entry)), default=0)
    chunk = metadata.integer("experts_per_group", 1) if anatomy is not None and anatomy.chunked else 1
    return ExpertModel(
        count=metadata.integer("expert_count"),
        used=used,
        layers=layers,
        groups=max(1, metadata.integer("expert_group_count", 1)),
        groups_used=max(1, metadata.integer("expert_group_used_count", 1)),
        chunk=max(1, chunk),
        trunk=metadata.trunk,
        anatomy=anatomy,
    )


def after_block(tensor: Tensor) -> str:
    """`blk.7.ffn_gate_inp.weight` -> `ffn_gate_inp.weight`."""
    return tensor.name if tensor.layer is None else tensor.name.split(".", 2)[2]


def prune_experts(model: Model, sets: ExpertSets, gone: frozenset[int], *, i_know: bool = False) -> ExpertResult:
    """What pruning the experts `sets` (numbers of the input) asks for; gone: the layers that are pruned whole.

    i_know: what would be refused because its effect is known to be bad is only warned of.
    """
    experts = expert_model(model)
    problems = list(experts.faults) or _refusals(model, experts, i_know)
    if any(problem.severity == "error" for problem in problems):
        return ExpertResult((), experts.count, tuple(problems))
    kept_layers = [layer for layer in experts.layers if layer not in gone]
    chosen = {layer: frozenset(numbers) for layer, numbers in sets if layer not in gone and numbers}
    problems += _wrong_numbers(experts, chosen)
    counts = {layer: len(chosen.get(layer, ())) for layer in kept_layers}
    if not problems and len(set(counts.values())) > 1:
        problems.append(_uneven(counts))
    if any(problem.severity == "error" for problem in problems):
        return ExpertResult((), experts.count, tuple(problems))
    left = experts.count - max(counts.values(), default=0)
    problems += _group_problems(experts, chosen, left) + _pinned(model, experts, left)
    slices = [one for layer in kept_layers if layer in chosen for one in _slices(experts, layer, chosen[layer])]
    return ExpertResult(tuple(slices), left, tuple(problems))


def _faults(model: Model, experts: ExpertModel) -> list[Problem]:
    """What in the file itself prevents pruning its experts."""
    if not experts.layers and experts.count == 0:
        return [Problem("error", f"cannot prune experts: {model.architecture} has none in this file")]
    if experts.anatomy is None:
        return [Problem("error", _unknown(model))]
    if not 0 < experts.count <= MOST_EXPERTS or experts.count % experts.unit or experts.unit > experts.count:
        text = f"expert_count is {experts.count}, in {experts.groups} groups"
        return [Problem("error", f"cannot prune experts: {text}: the file is damaged, convert the model again")]
    if experts.anatomy.impossible:
        return [Problem("error", f"no expert of {model.architecture} can be pruned: {experts.anatomy.impossible}")]
    odd = [tensor for layer in model.layers for tensor in layer.tensors if _odd(experts.anatomy, after_block(tensor))]
    if odd:
        return [_odd_tensor(odd[0])]
    for layer, tensors in experts.layers.items():
        for tensor in tensors:
            if tensor.info.format is None:
                return [Problem("error", f"cannot prune experts: {tensor.name} is of type {tensor.type_name}, unknown")]
            found = _experts_in(experts, tensor)
            if found != experts.count:
                text = f"{tensor.name} has {found} experts, expert_count says {experts.count}: layer {layer} is damaged"
                return [Problem("error", f"{text}; convert the model again")]
    return []


def _refusals(model: Model, experts: ExpertModel, i_know: bool) -> list[Problem]:
    """Why the experts of this architecture should not be pruned."""
    if experts.anatomy is not None and experts.anatomy.refusal:
        text = f"pruning experts of {model.architecture}: {experts.anatomy.refusal}"
        return [Problem("warning", text) if i_know else Problem("error", f"{text}; --i-know prunes all the same")]
    return []


def _odd(anatomy: Experts, name: str) -> bool:
    """Whether the tensor seems to hold experts and is none of those the table knows how to slice."""
    if name in EXPERT_DIMENSION or name in NOT_OF_EXPERTS or (anatomy.chunked and name in CHUNK_DIMENSION):
        return False
    return LOOKS_LIKE_EXPERTS.search(name) is not None


def _odd_tensor(tensor: Tensor) -> Problem:
    name = after_block(tensor)
    if ONE_TENSOR_EACH.match(name):
        return Problem("error", f"{tensor.name}: one tensor for each expert is a form llama.cpp no longer loads")
    if name == HASH_TABLE:
        text = f"{tensor.name} sends every token to experts by number; those of a pruned one would have nowhere to go"
        return Problem("error", f"cannot prune experts: {text}")
    return Problem("error", f"cannot prune experts: it is not known where the experts lie in {tensor.name}")


def _experts_in(experts: ExpertModel, tensor: Tensor) -> int:
    name = after_block(tensor)
    chunked = name not in EXPERT_DIMENSION
    dimension = CHUNK_DIMENSION[name] if chunked else EXPERT_DIMENSION[name]
    length = tensor.ne[dimension] if dimension < len(tensor.ne) else 1
    return length * experts.chunk if chunked else length


def _unknown(model: Model) -> str:
    """What nobody has looked at in an architecture that is not in the table."""
    prefix = model.architecture + "."
    keys = sorted(key.removeprefix(prefix) for key in model.file.kv if key.startswith(prefix) and "expert" in key)
    names = sorted(
        {name for layer in model.layers for tensor in layer.tensors if "exp" in (name := after_block(tensor))}
    )
    parts = [
        f"the keys {', '.join(keys)}" if keys else "",
        f"the tensors {', '.join(names)}" if names else "",
        "what else llama.cpp takes from the number of experts",
    ]
    return (
        f"cannot prune experts: those of {model.architecture!r} are not known; "
        f"not checked: {'; '.join(filter(None, parts))}"
    )


def _wrong_numbers(experts: ExpertModel, chosen: Mapping[int, frozenset[int]]) -> list[Problem]:
    for layer, numbers in chosen.items():
        if layer not in experts.layers:
            text = f"layer {layer} has no experts; layers with experts: {spans(experts.layers)}"
            return [Problem("error", f"cannot prune experts: {text}")]
        if min(numbers) < 0 or max(numbers) >= experts.count:
            wrong = sorted(number for number in numbers if not 0 <= number < experts.count)
            text = f"layer {layer} has no expert {wrong[0]}; its experts are 0 to {experts.count - 1}"
            return [Problem("error", f"cannot prune experts: {text}")]
        if len(numbers) == experts.count:
            return [Problem("error", f"cannot prune every expert of layer {layer}; keep at least one")]
    return []


def _uneven(counts: Mapping[int, int]) -> Problem:
    by_count: dict[int, list[int]] = {}
    for layer, count in counts.items():
        by_count.setdefault(count, []).append(layer)
    each = "; ".join(f"{count} in layer{'s' * (len(at) > 1)} {spans(at, 6)}" for count, at in sorted(by_count.items()))
    return Problem(
        "error",
        f"the layers lose different numbers of experts ({each}), but a GGUF has one expert_count for all of them; "
        "prune as many in each",
    )


def _group_problems(experts: ExpertModel, chosen: Mapping[int, frozenset[int]], left: int) -> list[Problem]:
    """Groups keep their size alike, or go whole; chunks go whole; enough experts stay within reach."""
    if experts.chunk > 1:
        split = [layer for layer, gone in chosen.items() if _broken(gone, experts.chunk)]
        if split:
            text = f"{experts.chunk} neighbours share an expert and can only go together; layer {split[0]} splits some"
            return [Problem("error", f"cannot prune these experts: {text}")]
    if experts.groups <= 1:
        return []
    plans = {group_plan(experts, gone) for gone in chosen.values()}
    if len(plans) != 1 or None in plans:
        text = f"the router chooses among {experts.groups} groups of neighbours, which must lose equally many experts"
        return [Problem("error", f"cannot prune these experts: {text} (or be pruned whole)")]
    groups, size = plans.pop() or (1, left)
    if groups > 1 and size < 2:
        return [Problem("error", "each group must keep two experts: the router ranks groups by their best two")]
    used = min(experts.used, left)
    reach = size * experts.groups_used if groups > 1 else left
    if reach < used:
        text = f"{experts.groups_used} groups of {size} hold {reach} experts, and {used} are used for every token"
        return [Problem("error", f"cannot prune so many experts: {text}")]
    return []


def _broken(gone: frozenset[int], size: int) -> bool:
    return any(len(gone.intersection(range(start, start + size))) not in (0, size) for start in _starts(gone, size))


def _starts(gone: frozenset[int], size: int) -> set[int]:
    return {number // size * size for number in gone}


def group_plan(experts: ExpertModel, gone: frozenset[int]) -> tuple[int, int] | None:
    """(groups, experts in each) of what stays; None where the groups would differ in size.

    With no more groups than are used, all of them are: one group then says the same.
    """
    size = experts.count // experts.groups
    lost = [0] * experts.groups
    for number in gone:
        lost[number // size] += 1
    if len(set(lost)) == 1:
        return experts.groups, size - lost[0]
    if set(lost) <= {0, size}:
        groups = lost.count(0)
        return (groups, size) if groups > experts.groups_used else (1, groups * size)
    return None


def _pinned(model: Model, experts: ExpertModel, left: int) -> list[Problem]:
    pinned = experts.anatomy.pinned if experts.anatomy else None
    if pinned is None or pinned[0] not in (experts.count, left) or left == experts.count:
        return []
    text = f"llama.cpp takes from the number of experts of {model.architecture} {pinned[1]}, and no key states it"
    return [Problem("error", f"cannot prune {experts.count} experts to {left}: {text}")]


def _slices(experts: ExpertModel, layer: int, gone: frozenset[int]) -> list[TensorSlice]:
    keep = kept_ranges(gone, experts.count)
    slices = []
    for tensor in experts.layers[layer]:
        name = after_block(tensor)
        if name in EXPERT_DIMENSION:
            slices.append(TensorSlice(tensor.name, EXPERT_DIMENSION[name], keep))
        else:
            chunks = tuple((start // experts.chunk, end // experts.chunk) for start, end in keep)
            slices.append(TensorSlice(tensor.name, CHUNK_DIMENSION[name], chunks))
    return slices


@lru_cache(1024)
def kept_ranges(gone: frozenset[int], count: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of the numbers below `count` that are not in `gone`."""
    bounds = [-1, *sorted(gone), count]
    return tuple((a + 1, b) for a, b in pairwise(bounds) if b > a + 1)


def edit_counts(
    kv: MutableMapping[str, Value], model: Model, result: ExpertResult, chosen: frozenset[int], by_user: frozenset[str]
) -> list[Problem]:
    """Write the counts of the output into its metadata `kv`, where the layers are renumbered already.

    chosen: the experts pruned in any one layer, which stand for all (groups are alike in all of them); by_user: keys
    that --override-kv sets. Returns the remarks.
    """
    experts, prefix = expert_model(model), model.architecture + "."
    edits = _count_edits(kv, result.count, prefix)
    if experts.groups > 1:
        edits |= _group_edits(experts, chosen, prefix)
    problems = []
    if f"{prefix}expert_used_count" in edits and experts.anatomy is not None and experts.anatomy.width_by_used:
        width = _width_edits(kv, experts, prefix)
        if width is None:
            text = f"{prefix}expert_feed_forward_length is missing, and the experts are not alike in width"
            problems.append(Problem("error", f"cannot use fewer than {experts.used} experts: {text}"))
        edits |= width or {}
    clash = sorted(by_user.intersection(edits))
    if clash:
        text = f"--override-kv {clash[0]} contradicts the experts pruned; leave it out"
        problems.append(Problem("error", text))
    kv.update(edits)
    if edits:
        problems.append(Problem("note", f"the metadata follows the experts: {', '.join(sorted(edits))}"))
    return problems


def _count_edits(kv: Mapping[str, Value], left: int, prefix: str) -> Edits:
    count, used = kv.get(f"{prefix}expert_count"), kv.get(f"{prefix}expert_used_count")
    edits: Edits = {}
    if count is not None and isinstance(count.decode(), int):
        edits[f"{prefix}expert_count"] = Value.of(count.type, left)
    if used is not None and used.element_type is not None:
        entries = used.small() or []
        if all(isinstance(entry, int) for entry in entries) and any(entry > left for entry in entries):
            edits[f"{prefix}expert_used_count"] = Value.array(used.element_type, [min(e, left) for e in entries])
    elif used is not None and isinstance(used.decode(), int) and used.decode() > left:
        edits[f"{prefix}expert_used_count"] = Value.of(used.type, left)
    return edits


def _group_edits(experts: ExpertModel, chosen: frozenset[int], prefix: str) -> Edits:
    plan = group_plan(experts, chosen)
    if plan is None or plan[0] == experts.groups:
        return {}
    used = 1 if plan[0] == 1 else experts.groups_used
    return {
        f"{prefix}expert_group_count": Value.of(ValueType.UINT32, plan[0]),
        f"{prefix}expert_group_used_count": Value.of(ValueType.UINT32, used),
    }


def _width_edits(kv: Mapping[str, Value], experts: ExpertModel, prefix: str) -> Edits | None:
    """The width of an expert, which llama.cpp would otherwise work out from the number used; None: no one width."""
    key = f"{prefix}expert_feed_forward_length"
    stored = kv.get(key)
    if stored is not None and (stored.element_type is not None or stored.decode() != 0):
        return {}
    widths = {
        tensor.ne[0]
        for tensors in experts.layers.values()
        for tensor in tensors
        if after_block(tensor) == "ffn_down_exps.weight"
    }
    return {key: Value.of(ValueType.UINT32, widths.pop())} if len(widths) == 1 else None
