"""The key-value list of the output, in llama-quantize's order: every key that is set moves to the end.

source keys | general.quantization_version | general.file_type | split keys removed | overrides | quantize.imatrix.*
| block_count when pruning; then, unless `compat`, what pruning by anatomy changes and where the model came from.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from surgeon.anatomy.experts import MOST_EXPERTS
from surgeon.anatomy.roles import MAX_BLOCKS
from surgeon.errors import SurgeonError
from surgeon.gguf.values import LENGTH, Value, ValueType
from surgeon.layer_lists import read_spans, spans
from surgeon.model.model import Model
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import KVOverride, Plan
from surgeon.resolve.shards import SPLIT_KEYS
from surgeon_kernels.formats import FORMATS

if TYPE_CHECKING:
    from surgeon.moments.moments import Moments

QUANTIZATION_VERSION = 2
GUESSED = 1024  # a file type that was guessed from the tensors carries this bit
ENCODER, MOMENTS = "surgeon.encoder", "surgeon.moments"
PRUNED_LAYERS, SOURCE, PLAN_HASH = "surgeon.pruned_layers", "surgeon.source", "surgeon.plan"
PRUNED_EXPERTS = "surgeon.pruned_experts"  # one text per layer, `3: 0, 17-19`

# llama-quantize keeps strings of its own in 128 bytes, the last of them NUL.
_C_STRING_BYTES = 127

KeyValues = dict[str, Value]
_SIGNED = (ValueType.INT8, ValueType.INT16, ValueType.INT32, ValueType.INT64)
_UNSIGNED = (ValueType.UINT8, ValueType.UINT16, ValueType.UINT32, ValueType.UINT64)

# The file type a loader guesses from the most frequent tensor type; F32's when it is another one. NVFP4 has a number,
# but is no TYPE of the command line.
_GUESSES = {"NVFP4": 39} | {
    name: kind.number for name in FORMATS if (kind := FILE_TYPES.get(f"{name}_M") or FILE_TYPES.get(name))
}


def base_metadata(model: Model, plan: Plan, types: tuple[str, ...], *, any_quantizable: bool = True) -> KeyValues:
    """Steps up to the user's overrides; types: those of all tensors of the input, in output order."""
    kv = _cut_at_nul(model) if plan.compat else dict(model.file.kv)
    _set(kv, "general.quantization_version", Value.of(ValueType.UINT32, QUANTIZATION_VERSION))
    number = file_type_number(model, plan, types, any_quantizable=any_quantizable)
    _set(kv, "general.file_type", Value.of(ValueType.UINT32, number))
    for key in SPLIT_KEYS:
        kv.pop(key, None)
    for override in plan.override_kv:
        stored = model.file.kv.get(override.key)
        _set(kv, override.key, override_value(concrete(override, stored), stored, compat=plan.compat))
    for key in plan.deleted_keys:
        kv.pop(key, None)
    return kv


def add_imatrix(kv: KeyValues, plan: Plan, path: str, datasets: tuple[str, ...], entries: int, chunks: int) -> None:
    """What the output records of the importance matrix; entries: after `--include-weights` and `--exclude-weights`."""
    if not plan.hide_imatrix:
        _set(kv, "quantize.imatrix.file", _text(plan.imatrix_file or path, plan.compat))
        if datasets:
            _set(kv, "quantize.imatrix.dataset", _text(datasets[0], plan.compat))
    _set(kv, "quantize.imatrix.entries_count", Value.of(ValueType.UINT32, entries))
    if chunks > 0:
        _set(kv, "quantize.imatrix.chunks_count", Value.of(ValueType.UINT32, chunks))


def add_feedback(kv: KeyValues, plan: Plan, moments: Moments, tensors: int) -> None:
    """What the output records of the encoder: how many tensors it wrote, and by which second moments."""
    if not tensors:
        return
    shrink = "chosen" if plan.shrink is None else f"{plan.shrink:g}"
    text = f"feedback, {tensors} tensors, rounds {plan.feedback_rounds}, shrink {shrink}"
    _set(kv, ENCODER, Value.of(ValueType.STRING, text))
    _set(kv, MOMENTS, Value.of(ValueType.STRING, moments.digest))
    if not plan.hide_imatrix and moments.head.datasets:
        _set(kv, f"{MOMENTS}.dataset", Value.of(ValueType.STRING, moments.head.datasets[0]))


def set_block_count(kv: KeyValues, model: Model, count: int) -> None:
    _set(kv, f"{model.architecture}.block_count", Value.of(ValueType.UINT32, count))


def apply_edits(kv: KeyValues, edits: Iterable[tuple[str, Value | None]]) -> None:
    """Each key replaced where it stands (appended when new), or removed with None."""
    for key, value in edits:
        if value is None:
            kv.pop(key, None)
        else:
            kv[key] = value


def add_provenance(kv: KeyValues, model: Model, plan: Plan) -> None:
    """Which layers and experts of which file are gone; numbers and name are the first file's, however often pruned."""
    stored = model.file.kv.get(PRUNED_LAYERS)
    ours = stored is not None and stored.element_type is ValueType.INT32
    before = frozenset(stored.small() or ()) if stored is not None and ours else frozenset()
    there = frozenset(layer.index for layer in model.layers if layer.index < MAX_BLOCKS)
    experts_before = _stored_experts(model)
    if plan.pruned:
        _set(kv, PRUNED_LAYERS, Value.array(ValueType.INT32, _original_numbers(before, plan.pruned & there)))
    if plan.pruned_experts:
        _set(kv, PRUNED_EXPERTS, _all_pruned_experts(plan, there, before, experts_before))
    if not ((before or experts_before) and SOURCE in kv):
        _set(kv, SOURCE, Value.of(ValueType.STRING, model.file.path.name))
    _set(kv, PLAN_HASH, Value.of(ValueType.STRING, plan_hash(plan)))


def _stored_experts(model: Model) -> dict[int, frozenset[int]]:
    """Layer -> experts that were pruned before, by the first file's numbers."""
    stored = model.file.kv.get(PRUNED_EXPERTS)
    if stored is None or stored.element_type is not ValueType.STRING:
        return {}
    found = {}
    for text in stored.small() or ():
        layer, _, experts = text.partition(":")
        with suppress(SurgeonError):  # not of our writing
            (number,) = read_spans(layer, range(MAX_BLOCKS))
            found[number] = read_spans(experts, range(MOST_EXPERTS))
    return found


def _all_pruned_experts(
    plan: Plan, there: frozenset[int], layers_before: frozenset[int], before: dict[int, frozenset[int]]
) -> Value:
    """What was pruned and what is pruned now, of every layer by the first file's numbers."""
    sets = ((layer, gone) for layer, gone in plan.pruned_experts if layer in there - plan.pruned)
    now = {layer: gone[: bisect_left(gone, MOST_EXPERTS)] for layer, gone in sets}
    original = {_original(layers_before, layer): gone for layer, gone in now.items()}
    merged = dict(before)
    for layer, gone in original.items():
        pruned_before = before.get(layer)
        merged[layer] = frozenset(_original_numbers(pruned_before, frozenset(gone)) if pruned_before else gone)
    return Value.array(ValueType.STRING, [f"{layer}: {spans(merged[layer])}" for layer in sorted(merged)])


def _original(before: frozenset[int], number: int) -> int:
    """The number that the `number`-th left had when those in `before` were still there."""
    for gone in sorted(before):
        number += gone <= number
    return number


def plan_hash(plan: Plan) -> str:
    """sha256 of what the plan decides; where the importance matrix lies does not count."""
    bare = replace(plan, imatrix_file=None, pruned=frozenset(), healing=None)
    text = f"{bare!r} {sorted(plan.pruned)}"
    if plan.pruned_experts:
        text += f" {plan.pruned_experts}"
    if plan.healing:
        text += f" healed {plan.healing.id}"
    if (plan.shrink, plan.feedback_rounds) != (None, 1):
        text += f" {plan.shrink} {plan.feedback_rounds}"
    if plan.deleted_keys:
        text += f" without {plan.deleted_keys}"
    return hashlib.sha256(text.encode()).hexdigest()


def _original_numbers(before: frozenset[int], pruned: frozenset[int]) -> list[int]:
    if not before:
        return sorted(pruned)
    original, numbers = set(before), set(pruned)
    layer = current = 0
    last = max(numbers, default=-1)
    while current <= last:
        if layer not in before:
            if current in numbers:
                original.add(layer)
            current += 1
        layer += 1
    return sorted(original)


def file_type_number(model: Model, plan: Plan, types: tuple[str, ...], *, any_quantizable: bool = True) -> int:
    """The TYPE's number; for COPY, and where nothing can be quantized, that of the source, else a guess."""
    if plan.file_type != "COPY" and (plan.compat or any_quantizable):
        return FILE_TYPES[plan.file_type].number
    stored = model.file.kv.get("general.file_type")
    number = stored.small() if stored is not None else None
    return number if isinstance(number, int) and 0 <= number < 1 << 32 else _guess(types) | GUESSED


@lru_cache(4)
def _guess(types: tuple[str, ...]) -> int:
    """By the type that first reached the greatest count."""
    counts: Counter[str] = Counter()
    best, most = "F32", 0
    for name in types:
        counts[name] += 1
        if counts[name] > most:
            best, most = name, counts[name]
    return _GUESSES.get(best, 0)


_NUMBER = re.compile(r"[-+]?[0-9]{1,20}")
_FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)


def concrete(override: KVOverride, stored: Value | None) -> KVOverride:
    """An override of the kind `auto` as one of the type that the key has, or of what the text looks like where the
    model has no such key. Raises SurgeonError where the text is none of that type."""
    if override.kind != "auto":
        return override
    text, key = str(override.value), override.key
    if stored is not None and stored.type is ValueType.ARRAY:
        raise SurgeonError(f"{key} is an array; only keys of one value can be set")
    kind = _kind_of(text) if stored is None else _KINDS.get(stored.type, "int")
    try:
        if kind == "bool":
            return KVOverride(key, kind, {"true": True, "false": False}[text.lower()])
        if kind == "int":
            return KVOverride(key, kind, int(text) if _NUMBER.fullmatch(text) else _refused(text))
        return KVOverride(key, kind, float(text) if kind == "float" else text)
    except (KeyError, ValueError):
        of = stored.type.name.lower() if stored is not None else kind
        raise SurgeonError(f"{key} is of type {of}, which {text[:60]!r} is not") from None


_KINDS = {ValueType.STRING: "str", ValueType.BOOL: "bool", **dict.fromkeys(_FLOATS, "float")}


def _refused(text: str) -> int:
    raise ValueError(text)


def _kind_of(text: str) -> str:
    if text in ("true", "false"):
        return "bool"
    if _NUMBER.fullmatch(text):
        return "int"
    with suppress(ValueError):
        float(text)
        return "float"
    return "str"


def override_value(override: KVOverride, stored: Value | None, *, compat: bool) -> Value:
    """The value to write. An integer keeps its sign and the type the key has; llama-quantize makes it an absolute u32.

    Raises SurgeonError when the number does not fit the key's type.
    """
    match override.kind:
        case "str":
            return _text(str(override.value), compat)
        case "bool":
            return Value.of(ValueType.BOOL, bool(override.value))
        case "float":
            keep = not compat and stored is not None and stored.type is ValueType.FLOAT64
            return _fitting(override, ValueType.FLOAT64 if keep else ValueType.FLOAT32, float(override.value))
        case _:
            number = int(override.value)
            if compat:
                return Value.of(ValueType.UINT32, abs(number) & 0xFFFFFFFF)
            return _integer(override, number, stored)


def _integer(override: KVOverride, number: int, stored: Value | None) -> Value:
    if stored is not None and stored.type in (*_SIGNED, *_UNSIGNED, ValueType.FLOAT32, ValueType.FLOAT64):
        return _fitting(override, stored.type, number)
    if number < 0:
        return _fitting(override, ValueType.INT32 if number >= -(2**31) else ValueType.INT64, number)
    return _fitting(override, ValueType.UINT32 if number < 2**32 else ValueType.UINT64, number)


def _fitting(override: KVOverride, type_: ValueType, number: float) -> Value:
    try:
        return Value.of(type_, number)
    except ValueError:
        raise SurgeonError(
            f"--override-kv {override}: the key is {type_.name.lower()}, {number} does not fit"
        ) from None


def _text(text: str, compat: bool) -> Value:
    raw = text.encode("utf-8", "surrogateescape")
    return Value.of(ValueType.STRING, raw.split(b"\0")[0][:_C_STRING_BYTES] if compat else raw)


def _set(kv: KeyValues, key: str, value: Value) -> None:
    kv.pop(key, None)
    kv[key] = value


_cut: WeakKeyDictionary[Model, KeyValues] = WeakKeyDictionary()


def _cut_at_nul(model: Model) -> KeyValues:
    """The source's metadata as it looks after a passage through C strings; worked out once per model."""
    if model not in _cut:
        _cut[model] = {key: _cut_value(value) for key, value in model.file.kv.items()}
    return dict(_cut[model])


def _cut_value(value: Value) -> Value:
    if value.type is ValueType.STRING:
        text = value.raw[LENGTH.size :]
        return Value.of(ValueType.STRING, text.split(b"\0")[0]) if b"\0" in text else value
    if value.element_type is ValueType.STRING:
        items = _strings(value)
        if any(b"\0" in item for item in items):
            return Value.array(ValueType.STRING, [item.split(b"\0")[0] for item in items])
    return value


def _strings(value: Value) -> list[Any]:
    """The elements of an array of strings as bytes: decoding would lose what is not UTF-8."""
    raw, items, position = value.raw, [], 12
    for _ in range(value.count):
        begin = position + LENGTH.size
        position = begin + LENGTH.unpack_from(raw, position)[0]
        items.append(raw[begin:position])
    return items
