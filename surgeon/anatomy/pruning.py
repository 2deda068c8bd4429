"""What leaving layers out of a model asks of its metadata and of the tensors outside its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from surgeon.anatomy.edits import (
    drop_entries,
    lower_counts,
    renumber_values,
    state_assumed,
    unlisted_arrays,
)
from surgeon.anatomy.roles import Leading, Metadata, Periodic, Role, Trailing
from surgeon.anatomy.shifts import describe, neighbours, shifted
from surgeon.anatomy.table import COMMON, HARMLESS, INDEXERS, Anatomy, anatomy_of
from surgeon.gguf.values import Value, ValueType
from surgeon.layer_lists import spans
from surgeon.model.model import Model
from surgeon.problems import Problem

Edits = dict[str, Value]
OLDER_RELEASES = "releases of llama.cpp that do not read the array would go by layer number still"


@dataclass(frozen=True)
class TensorSlice:
    """A tensor outside the blocks that loses the pruned layers' share.

    dimension: of ne, 0 is along the row; keep: half-open ranges of that dimension, in elements.
    """

    name: str
    dimension: int
    keep: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """What remains of the dimension."""
        return _length(self.keep)


@lru_cache(1024)  # the matrices of a layer lose the same experts, and every keystroke asks for all of them
def _length(ranges: tuple[tuple[int, int], ...]) -> int:
    return sum([end - start for start, end in ranges])


@dataclass(frozen=True, slots=True)
class TensorScale:
    """An F32 tensor to be multiplied by `factor`."""

    name: str
    factor: float


@dataclass(frozen=True, slots=True)
class AnatomyResult:
    """kv: keys to replace where they stand, append when new, remove (None); block_count and provenance not included.

    notes: what to show before anything is written.
    """

    kv: tuple[tuple[str, Value | None], ...]
    slices: tuple[TensorSlice, ...]
    notes: tuple[Problem, ...]
    scales: tuple[TensorScale, ...] = ()


@dataclass(frozen=True, slots=True)
class Pruning:
    """before: the metadata of the input, what llama.cpp would assume written out; gone, kept: its layers."""

    before: Metadata
    anatomy: Anatomy
    gone: frozenset[int]
    kept: tuple[int, ...]

    @property
    def roles(self) -> tuple[Role, ...]:
        return (*self.anatomy.roles, *COMMON)

    def after(self, edits: Edits) -> Metadata:
        """The metadata of the output."""
        architecture = self.before.architecture
        block_count = {f"{architecture}.block_count": Value.of(ValueType.UINT32, len(self.kept))}
        return Metadata(architecture, {**self.before.kv, **edits, **block_count})


def prune_metadata(model: Model, pruned: frozenset[int], *, i_know: bool = False) -> AnatomyResult:
    """What pruning the layers `pruned` (numbers of the input) asks for; those that do not exist are not looked at.

    i_know: what would be refused because its effect is not known, or known to be bad, is only warned of.
    """
    there = [layer.index for layer in model.layers]
    gone = pruned.intersection(there)
    kept = tuple(layer for layer in sorted({*range(model.block_count), *there}) if layer not in gone)
    if not gone or not kept:
        return AnatomyResult((), (), ())
    known = anatomy_of(model.architecture)
    anatomy = known or Anatomy(model.architecture)
    if anatomy.refusal:
        refusal = Problem("error", f"no layer of {model.architecture} can be pruned: {anatomy.refusal}")
        return AnatomyResult((), (), (refusal,))
    stored = Metadata(model.architecture, model.file.kv)
    whole = Metadata(model.architecture, {**stored.kv, **state_assumed(anatomy.assumed, stored)})
    pruning, refuse = Pruning(whole, anatomy, gone, kept), _refusal(i_know)
    edits, problems = _edits(pruning)
    scales, remarks = _derived(model, pruning, edits, refuse)
    problems += remarks
    slices, unsliceable = _slices(model, pruning)
    problems += unsliceable + _role_problems(pruning, pruning.after(edits), refuse) + _lost_sources(pruning)
    if known is None:
        problems.append(refuse(_unknown(whole)))
    if edits:
        problems.append(Problem("note", f"the metadata follows the pruning: {', '.join(sorted(edits))}"))
    return AnatomyResult(tuple(edits.items()), slices, tuple(problems), scales)


def layer_roles(model: Model) -> dict[int, str]:
    """Each layer's role in a word or two (`global`, `dense`, `recurrent`, `mtp` …); empty when all are alike."""
    metadata = Metadata(model.architecture, model.file.kv)
    anatomy = anatomy_of(model.architecture) or Anatomy(model.architecture)
    rules = (*anatomy.roles, *COMMON)
    columns = [words for words in (role.of(metadata) for role in rules) if len(set(words)) > 1]
    roles = {}
    for layer in range(metadata.block_count):
        words = list(dict.fromkeys(word for column in columns if (word := column[layer])))
        if "dense" in words and "moe" in words:  # each rule can only take the experts away
            words.remove("moe")
        roles[layer] = " ".join(words)
    return roles if any(roles.values()) else {}


def _refusal(i_know: bool) -> Callable[[str], Problem]:
    if i_know:
        return lambda text: Problem("warning", text)
    return lambda text: Problem("error", f"{text}; --i-know prunes all the same")


def _unknown(metadata: Metadata) -> str:
    """What nobody has looked at in an architecture that is not in the table."""
    prefix = metadata.architecture + "."
    arrays = sorted(key.removeprefix(prefix) for key in unlisted_arrays(metadata))
    words = sorted(
        key.removeprefix(prefix)
        for key in metadata.kv
        if key.startswith(prefix)
        and ("layer" in key.removeprefix(prefix) or "block" in key.removeprefix(prefix))
        and key.removeprefix(prefix) not in HARMLESS
    )
    parts = [
        f"arrays with one entry per layer: {', '.join(arrays)}" if arrays else "",
        f"keys that may speak of layers: {', '.join(words)}" if words else "",
        "layers whose role follows from their number",
    ]
    return f"the anatomy of {metadata.architecture!r} is not known; not checked: {'; '.join(filter(None, parts))}"


def _edits(pruning: Pruning) -> tuple[Edits, list[Problem]]:
    """Arrays shortened, counts lowered, layer numbers renumbered, roles frozen."""
    before = pruning.before
    edits, problems = drop_entries(before, pruning.gone)
    numbers, remarks = renumber_values(before, pruning.gone, pruning.kept)
    edits |= numbers | lower_counts(pruning.roles, before, pruning.gone)
    frozen, notes = _freeze(pruning, pruning.after(edits))
    return edits | frozen, problems + remarks + notes


def _derived(
    model: Model, pruning: Pruning, edits: Edits, refuse: Callable[[str], Problem]
) -> tuple[tuple[TensorScale, ...], list[Problem]]:
    """What llama.cpp would work out anew for so many layers: stated in `edits`, absorbed by tensors, or refused."""
    before, after = pruning.before, pruning.after(edits)
    scales: list[TensorScale] = []
    problems = []
    for item in pruning.anatomy.derived:
        old, new = item.value(before, before.trunk), item.value(after, after.trunk)
        if old == new:
            continue
        text = f"{old} with {before.trunk}, {new} with {after.trunk}"
        absorbing = _absorbing(model, pruning, item.absorbed_by)
        if item.key and item.readable(after, after.trunk):
            edits[f"{before.architecture}.{item.key}"] = Value.of(item.type, old)
        elif absorbing and isinstance(old, int | float) and isinstance(new, int | float):
            scales += [TensorScale(name, math.sqrt(new / old)) for name in absorbing]
            text = f"llama.cpp takes {item.what} from the number of layers ({text}): {item.absorbed_by} makes up for it"
            problems.append(Problem("note", text))
        else:
            text = f"llama.cpp takes {item.what} from the number of layers, and no key states it: {text}"
            problems.append(Problem("error", text) if item.fatal else refuse(text))
    return tuple(scales), problems


def _absorbing(model: Model, pruning: Pruning, short: str) -> list[str]:
    """The tensors `short` of the kept layers if each layer of the trunk has one in F32, else none."""
    layers = {layer.index: layer.tensors for layer in model.layers}
    wanted = [layer for layer in pruning.kept if layer < pruning.before.trunk]
    found = [
        tensor.name
        for layer in wanted
        for tensor in layers.get(layer, ())
        if short and tensor.short == short and tensor.type_name == "F32"
    ]
    return found if len(found) == len(wanted) else []


def _freeze(pruning: Pruning, after: Metadata) -> tuple[Edits, list[Problem]]:
    """The roles of the kept layers as explicit arrays, for those that would change and whose loader reads an array."""
    before, kept = pruning.before, pruning.kept
    edits: Edits = {}
    problems = []
    for role in pruning.anatomy.roles:
        if not isinstance(role, Periodic) or not role.array_key:
            continue
        changes = shifted(role, before, after, kept)
        if not changes:
            continue
        words = role.of(before)
        key = f"{before.architecture}.{role.array_key}"
        edits[key] = Value.array(ValueType.BOOL, [words[layer] == role.ordinary for layer in kept])
        text = f"{key} is written so that no role changes (else {describe(changes)}); {OLDER_RELEASES}"
        problems.append(Problem("note", text))
    return edits, problems


def _role_problems(pruning: Pruning, after: Metadata, refuse: Callable[[str], Problem]) -> list[Problem]:
    """One line for each kind of role that would change all the same, with what to prune instead."""
    problems = []
    changed = [
        (role, changes) for role in pruning.roles if (changes := shifted(role, pruning.before, after, pruning.kept))
    ]
    advice = _advice([role for role, _ in changed], pruning)
    for role, changes in changed:
        text = f"roles would change by the layer number alone ({describe(changes)}){advice}"
        if role.shapes:
            problems.append(Problem("error", f"{text}; such a layer would not find its tensors"))
        elif isinstance(role, Leading) and not role.key:
            problems.append(refuse(f"{text}; llama.cpp has the number of those layers built in"))
        else:
            problems.append(Problem("warning", text))
    if pruning.anatomy.essential_first and 0 in pruning.gone:
        text = f"layer 0 of {pruning.before.architecture} cannot be pruned: {pruning.anatomy.essential_first}"
        problems.append(Problem("error", text))
    return problems


def _advice(roles: Sequence[Role], pruning: Pruning) -> str:
    """What to prune instead, so that none of `roles` changes for any layer."""
    before = pruning.before

    def shifts(candidate: frozenset[int]) -> bool:
        layers = tuple(layer for layer in range(before.block_count) if layer not in candidate)
        after = Pruning(before, pruning.anatomy, candidate, layers).after({})
        return any(shifted(role, before, after, layers) for role in roles)

    found = neighbours(roles, before, pruning.gone, shifts)
    if not found:
        return ""
    return f"; prune {' or '.join(spans(sorted(layers)) for layers in found)} and none does"


def _lost_sources(pruning: Pruning) -> list[Problem]:
    """What other layers take from a pruned one: keys and values, indexers, features of images."""
    before, gone = pruning.before, pruning.gone
    problems = []
    match pruning.anatomy.shared_kv:
        case Trailing() as role:
            first = role.start(before)
        case Leading() as role:
            first = role.count
        case None:
            first = before.block_count
    sources = gone.intersection((first - 2, first - 1))
    if sources and any(layer not in gone for layer in range(first, before.block_count)):
        problems.append(
            Problem(
                "error", f"layer {spans(sorted(sources))} holds the keys and values that layers from {first} on reuse"
            )
        )
    if INDEXERS in pruning.anatomy.roles:
        problems += _lost_indexers(before, gone)
    mapping = before.array("deepstack_mapping") or []
    featured = [layer for layer in sorted(gone) if layer < len(mapping) and mapping[layer] >= 0]
    if featured:
        problems.append(
            Problem(
                "warning", f"layer {spans(featured)} takes in features of images: a vision part will not fit any more"
            )
        )
    return problems


def _lost_indexers(before: Metadata, gone: frozenset[int]) -> list[Problem]:
    words = INDEXERS.of(before)
    orphans: list[int] = []
    for layer in sorted(gone):
        following = layer + 1
        while words[layer] and following < len(words) and not words[following]:
            if following not in gone:
                orphans.append(following)
            following += 1
    if not orphans:
        return []
    text = f"layers {spans(orphans)} reuse the indexer of a pruned layer and would take an earlier one's"
    return [Problem("warning", text)]


def _slices(model: Model, pruning: Pruning) -> tuple[tuple[TensorSlice, ...], list[Problem]]:
    """The tensors that hold all layers side by side, without the pruned ones."""
    gone, layers = pruning.gone, pruning.before.trunk
    slices, problems = [], []
    tensors = {tensor.name: tensor for tensor in model.others}
    for sliced in pruning.anatomy.sliced:
        tensor = tensors.get(sliced.name)
        if tensor is None or not gone.intersection(range(layers)):
            continue
        share, rest = divmod(tensor.ne[sliced.dimension], layers)
        block = tensor.info.format.block if tensor.info.format and sliced.dimension == 0 else 1
        if rest or share % block:
            text = f"{sliced.name} has {tensor.ne[sliced.dimension]} columns in {layers} layers"
            problems.append(
                Problem("error", f"{text}: a layer's share does not end on a {tensor.type_name} block boundary")
            )
            continue
        keep = tuple((share * start, share * end) for start, end in _runs(layers, gone))
        slices.append(TensorSlice(sliced.name, sliced.dimension, keep))
    return tuple(slices), problems


def _runs(layers: int, gone: frozenset[int]) -> list[tuple[int, int]]:
    """Half-open ranges of the layers that stay."""
    runs: list[tuple[int, int]] = []
    for layer in range(layers):
        if layer in gone:
            continue
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    return runs
