"""What leaving layers out of a model asks of its metadata and of the tensors outside its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from surgeon.anatomy.edits import (
    drop_entries,
    lower_counts,
    renumber_values,
    state_assumed,
    state_derived,
    unlisted_arrays,
)
from surgeon.anatomy.roles import Leading, Metadata, Periodic, Role, Trailing
from surgeon.anatomy.shifts import describe, neighbours, shifted, spans
from surgeon.anatomy.table import COMMON, HARMLESS, INDEXERS, Anatomy, anatomy_of
from surgeon.gguf_values import Value, ValueType
from surgeon.model import Model
from surgeon.problems import Problem

Edits = dict[str, Value]
OLDER_RELEASES = "releases of llama.cpp that do not read the array would count by layer number instead"


@dataclass(frozen=True, slots=True)
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
        return sum(end - start for start, end in self.keep)


@dataclass(frozen=True, slots=True)
class AnatomyResult:
    """kv: keys to replace where they stand, append when new, remove (None); block_count and provenance not included.

    notes: what to tell before anything is written; renumbering: layer of the input -> of the output, None when pruned.
    """

    kv: tuple[tuple[str, Value | None], ...]
    slices: tuple[TensorSlice, ...]
    notes: tuple[Problem, ...]
    renumbering: dict[int, int | None]


def prune_metadata(model: Model, pruned: frozenset[int], *, i_know: bool = False) -> AnatomyResult:
    """What pruning the layers `pruned` (numbers of the input) asks for; those that do not exist are not looked at.

    i_know: what would be refused because its effect is not known, or known to be bad, is only warned of.
    """
    before = Metadata(model.architecture, model.file.kv)
    there = [layer.index for layer in model.layers]
    gone = pruned.intersection(there)
    kept = [layer for layer in sorted({*range(before.block_count), *there}) if layer not in gone]
    renumbering: dict[int, int | None] = dict.fromkeys(gone) | {k: n for n, k in enumerate(kept)}
    if not gone or not kept:
        return AnatomyResult((), (), (), renumbering)
    known = anatomy_of(model.architecture)
    anatomy = known or Anatomy(model.architecture)
    refuse = _refusal(i_know)
    if anatomy.refusal:
        refusal = Problem("error", f"no layer of {model.architecture} can be pruned: {anatomy.refusal}")
        return AnatomyResult((), (), (refusal,), renumbering)
    problems = [] if known else [refuse(_unknown(before))]
    edits, told = _edits(before, anatomy, gone, kept)
    problems += told
    after = _after(before, edits, len(kept))
    derived, told = state_derived(anatomy.derived, before, after, refuse)
    edits |= derived
    slices, unsliceable = _slices(model, anatomy, before, gone)
    problems += told + unsliceable + _role_problems(before, after, anatomy, gone, kept, refuse)
    problems += _lost_sources(before, anatomy, gone)
    problems += [Problem("note", f"the metadata follows the pruning: {', '.join(sorted(edits))}")] if edits else []
    return AnatomyResult(tuple(edits.items()), slices, tuple(problems), renumbering)


def layer_roles(model: Model) -> dict[int, str]:
    """Each layer's role in a word or two (`global`, `dense`, `recurrent`, `mtp` …); empty when all are alike."""
    metadata = Metadata(model.architecture, model.file.kv)
    anatomy = anatomy_of(model.architecture) or Anatomy(model.architecture)
    columns = [words for words in (role.of(metadata) for role in _roles(anatomy)) if len(set(words)) > 1]
    roles = {}
    for layer in range(metadata.block_count):
        words = list(dict.fromkeys(word for column in columns if (word := column[layer])))
        if "dense" in words and "moe" in words:  # each rule can only take the experts away
            words.remove("moe")
        roles[layer] = " ".join(words)
    return roles if any(roles.values()) else {}


def _roles(anatomy: Anatomy) -> tuple[Role, ...]:
    return (*anatomy.roles, *COMMON)


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


def _edits(before: Metadata, anatomy: Anatomy, gone: frozenset[int], kept: list[int]) -> tuple[Edits, list[Problem]]:
    """Arrays shortened, counts lowered, layer numbers renumbered, roles frozen."""
    stated = state_assumed(anatomy.assumed, before)
    whole = Metadata(before.architecture, {**before.kv, **stated})
    edits, problems = drop_entries(whole, gone)
    numbers, told = renumber_values(before, gone, kept)
    edits |= numbers | lower_counts(_roles(anatomy), before, gone)
    frozen, note = _freeze(before, _after(before, edits, len(kept)), anatomy, kept)
    return edits | frozen, problems + told + note


def _after(before: Metadata, edits: Edits, count: int) -> Metadata:
    """The metadata of the output."""
    block_count = {f"{before.architecture}.block_count": Value.of(ValueType.UINT32, count)}
    return Metadata(before.architecture, {**before.kv, **edits, **block_count})


def _freeze(before: Metadata, after: Metadata, anatomy: Anatomy, kept: list[int]) -> tuple[Edits, list[Problem]]:
    """The roles of the kept layers as explicit arrays, for those that would change and whose loader reads an array."""
    edits: Edits = {}
    problems = []
    for role in anatomy.roles:
        if not isinstance(role, Periodic) or not role.array_key:
            continue
        changes = shifted(role, before, after, kept)
        if not changes:
            continue
        words = role.of(before)
        key = f"{before.architecture}.{role.array_key}"
        edits[key] = Value.array(ValueType.BOOL, [words[layer] == role.ordinary for layer in kept])
        problems.append(Problem("note", f"{key} is written so that no role changes: else {describe(changes)}"))
        problems.append(Problem("note", f"{key}: {OLDER_RELEASES}"))
    return edits, problems


def _role_problems(
    before: Metadata,
    after: Metadata,
    anatomy: Anatomy,
    gone: frozenset[int],
    kept: list[int],
    refuse: Callable[[str], Problem],
) -> list[Problem]:
    """One line for each kind of role that would change all the same, with what to prune instead."""
    problems = []
    for role in _roles(anatomy):
        changes = shifted(role, before, after, kept)
        if not changes:
            continue
        text = f"roles would change by the layer number alone ({describe(changes)}){_advice(role, before, gone)}"
        if role.shapes:
            problems.append(Problem("error", f"{text}; such a layer would not find its tensors"))
        elif isinstance(role, Leading) and not role.key:
            problems.append(refuse(f"{text}; llama.cpp has the number of those layers built in"))
        else:
            problems.append(Problem("warning", text))
    if anatomy.essential_first and 0 in gone:
        problems.append(Problem("error", f"layer 0 of {anatomy.names} cannot be pruned: {anatomy.essential_first}"))
    return problems


def _advice(role: Role, before: Metadata, gone: frozenset[int]) -> str:
    def shifts(candidate: frozenset[int]) -> bool:
        layers = [layer for layer in range(before.block_count) if layer not in candidate]
        return bool(shifted(role, before, _after(before, {}, len(layers)), layers))

    found = neighbours([role], before, gone, shifts)
    if not found:
        return ""
    return f"; prune {' or '.join(spans(sorted(layers)) for layers in found)} and none does"


def _lost_sources(before: Metadata, anatomy: Anatomy, gone: frozenset[int]) -> list[Problem]:
    """What other layers take from a pruned one: keys and values, indexers, features of images."""
    problems = []
    match anatomy.shared_kv:
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
    if INDEXERS in anatomy.roles:
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


def _slices(
    model: Model, anatomy: Anatomy, before: Metadata, gone: frozenset[int]
) -> tuple[tuple[TensorSlice, ...], list[Problem]]:
    """The tensors that hold all layers side by side, without the pruned ones."""
    slices, problems = [], []
    tensors = {tensor.name: tensor for tensor in model.others}
    layers = before.trunk
    for sliced in anatomy.sliced:
        tensor = tensors.get(sliced.name)
        if tensor is None or not gone.intersection(range(layers)):
            continue
        share, rest = divmod(tensor.ne[sliced.dimension], layers)
        block = tensor.info.format.block if tensor.info.format and sliced.dimension == 0 else 1
        if rest or share % block:
            text = f"{sliced.name} has {tensor.ne[sliced.dimension]} columns in {layers} layers"
            problems.append(
                Problem("error", f"{text}: a layer's share is no whole number of {tensor.type_name} blocks")
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
