"""The metadata keys that pruning changes: arrays, counts, layer numbers and what a loader would otherwise assume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from surgeon.anatomy.roles import Leading, Metadata, Role, Trailing
from surgeon.anatomy.table import LAYER_NUMBERS, NOT_PER_LAYER, PER_LAYER_ABSOLUTE, Assumed
from surgeon.gguf.values import CODES, Value, ValueType
from surgeon.model.layer_keys import PER_LAYER
from surgeon.problems import Problem

Edits = dict[str, Value]
COUNTS = frozenset(CODES) - {ValueType.BOOL, ValueType.FLOAT32, ValueType.FLOAT64}


def state_assumed(assumed: Iterable[Assumed], metadata: Metadata) -> Edits:
    """The per-layer arrays that llama.cpp would fill in itself, written out for the unpruned model."""
    edits: Edits = {}
    for item in assumed:
        entries = item.entries(metadata) if metadata.get(item.key) is None else None
        if entries is not None:
            edits[f"{metadata.architecture}.{item.key}"] = Value.array(ValueType.BOOL, entries)
    return edits


def drop_entries(metadata: Metadata, gone: frozenset[int]) -> tuple[Edits, list[Problem]]:
    """Every per-layer array without the entries of the layers `gone`."""
    edits: Edits = {}
    problems = []
    for key, value in _arrays(metadata):
        suffix = key.removeprefix(metadata.architecture + ".")
        if not (key in PER_LAYER_ABSOLUTE or suffix in PER_LAYER or key in unlisted_arrays(metadata)):
            continue
        entries = value.small() or []
        if len(entries) < metadata.trunk:
            text = f"{key} has {len(entries)} entries for {metadata.block_count} layers: left as it is"
            problems.append(Problem("warning", text))
            continue
        if value.element_type is None or not gone.intersection(range(len(entries))):
            continue
        left = [entry for layer, entry in enumerate(entries) if layer not in gone]
        edits[key] = Value.array(value.element_type, left)
        if key in unlisted_arrays(metadata):
            text = f"{key} is not known, but has one entry per layer: those of the pruned layers are left out"
            problems.append(Problem("warning", text))
    return edits, problems


def unlisted_arrays(metadata: Metadata) -> list[str]:
    """Numeric arrays of the architecture with exactly one entry per layer that the table does not name."""
    prefix = metadata.architecture + "."
    named = PER_LAYER | NOT_PER_LAYER | LAYER_NUMBERS
    return [
        key
        for key, value in _arrays(metadata)
        if key.startswith(prefix) and key.removeprefix(prefix) not in named and value.count == metadata.block_count
    ]


def _arrays(metadata: Metadata) -> list[tuple[str, Value]]:
    """The arrays of numbers; those of strings are vocabularies and labels."""
    return [(key, value) for key, value in metadata.kv.items() if value.element_type in CODES]


def lower_counts(roles: Iterable[Role], metadata: Metadata, gone: frozenset[int]) -> Edits:
    """The keys that count leading or trailing layers, less those that are gone."""
    edits: Edits = {}
    for role in roles:
        match role:
            case Leading(key=key, adjust=True) if key:
                start, end = 0, metadata.integer(key)
            case Trailing(key=key):
                start = role.start(metadata)
                end = start + metadata.integer(key)
            case _:
                continue
        lost = sum(start <= layer < end for layer in gone)  # the count may be anything, a loop over it not
        stored = metadata.kv.get(f"{metadata.architecture}.{key}")
        if lost and stored is not None and stored.type in COUNTS:
            edits[f"{metadata.architecture}.{key}"] = Value.of(stored.type, metadata.integer(key) - lost)
    return edits


def renumber_values(metadata: Metadata, gone: frozenset[int], kept: Sequence[int]) -> tuple[Edits, list[Problem]]:
    """The arrays whose values are layer numbers, in the output's numbers."""
    edits: Edits = {}
    problems = []
    numbers = {layer: number for number, layer in enumerate(kept)}
    for suffix in sorted(LAYER_NUMBERS):
        key = f"{metadata.architecture}.{suffix}"
        stored, listed = metadata.kv.get(key), metadata.array(suffix)
        if stored is None or listed is None or stored.element_type is None:
            continue
        lost = sorted(gone.intersection(listed))
        if lost:
            text = f"{key} names layer {', '.join(map(str, lost))}, whose tensors outside the blocks would be left over"
            problems.append(Problem("error", text))
        renumbered = [numbers[layer] for layer in listed if layer in numbers]
        if renumbered != listed:
            edits[key] = Value.array(stored.element_type, renumbered)
    return edits, problems
