"""Lanes to and from memory: slots on the stack, loads and stores of arrays, transposed loads, half-precision scalars.

Arrays are one-dimensional and contiguous, read-only or writable. Indices count elements of the array and are not
checked. Integer bytes widen to `i32` lanes when loaded and are cut to their width when stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.core.typing.templates import Signature

from .halves import emit_from_half_bits, emit_to_half_bits
from .processor import AVX512
from .types import (
    FLOAT,
    I8,
    I16,
    I32,
    I32X,
    I64,
    LANES,
    LaneType,
    SlotsType,
    f32,
    f32_slots,
    i32,
    i32_slots,
    lane_function,
)

_ALIGNED = 64  # bytes of a vector: slots never straddle a cache line


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, item: ir.Type) -> Any:
    """LLVM pointer to `item` at element `index` of a Numba array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), item.as_pointer())


def _slots(element: LaneType, kind: SlotsType) -> Any:
    def typing(count: types.Type) -> Signature | None:
        if not isinstance(count, types.IntegerLiteral):
            raise TypingError("the number of slots must be a constant")
        return kind(count)

    def emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        with builder.goto_entry_block():
            slots = builder.alloca(element.llvm, size=I32(signature.args[0].literal_value))
        slots.align = _ALIGNED
        return slots

    return lane_function(typing, emit)


# slots(n): room for n lanes on the stack, uninitialised; n is a constant. Read and write as s[i].
slots = _slots(f32, f32_slots)
int_slots = _slots(i32, i32_slots)


def _loader(item: ir.Type, dtypes: tuple[Any, ...], result: LaneType, widen: Callable[[Any, Any], Any]) -> Any:
    def typing(array: types.Type, index: types.Type) -> Signature | None:
        if not isinstance(array, types.Array) or array.dtype not in dtypes:
            raise TypingError(f"cannot load lanes from {array}")
        return result(array, types.intp)

    def emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        vector = ir.VectorType(item, LANES)
        pointer = address(context, builder, signature.args[0], args[0], args[1], vector)
        return widen(builder, builder.load(pointer, align=item.get_abi_size(context.target_data)))

    return lane_function(typing, emit)


# load_*(array, index): lanes from array[index : index + 16].
load_f32 = _loader(FLOAT, (types.float32,), f32, lambda builder, v: v)
load_i32 = _loader(I32, (types.int32, types.uint32), i32, lambda builder, v: v)
load_u8 = _loader(I8, (types.uint8,), i32, lambda builder, v: builder.zext(v, I32X))
load_i8 = _loader(I8, (types.uint8, types.int8), i32, lambda builder, v: builder.sext(v, I32X))
load_u16 = _loader(I16, (types.uint16,), i32, lambda builder, v: builder.zext(v, I32X))


def _byte_loader(item: ir.Type, widen: Callable[[Any, Any], Any], result: LaneType) -> Any:
    """Lanes from the little-endian items that start at byte `index` of a uint8 array."""

    def typing(array: types.Type, index: types.Type) -> Signature | None:
        if not isinstance(array, types.Array) or array.dtype != types.uint8:
            raise TypingError(f"cannot load lanes from {array}")
        return result(array, types.intp)

    def emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1], ir.VectorType(item, LANES))
        return widen(builder, builder.load(pointer, align=1))

    return lane_function(typing, emit)


# load_bytes_*(bytes, index): lanes from the little-endian items that start at byte `index`.
load_bytes_f32 = _byte_loader(FLOAT, lambda builder, v: v, f32)
load_bytes_u16 = _byte_loader(I16, lambda builder, v: builder.zext(v, I32X), i32)
load_bytes_i32 = _byte_loader(I32, lambda builder, v: v, i32)


def _storer(item: ir.Type, dtypes: tuple[Any, ...], value_type: LaneType) -> Any:
    def typing(array: types.Type, index: types.Type, value: types.Type) -> Signature | None:
        if not isinstance(array, types.Array) or array.dtype not in dtypes or value != value_type:
            raise TypingError(f"cannot store {value} into {array}")
        return types.void(array, types.intp, value)

    def emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        vector = ir.VectorType(item, LANES)
        narrow = args[2] if vector == args[2].type else builder.trunc(args[2], vector)
        builder.store(narrow, address(context, builder, signature.args[0], args[0], args[1], vector), align=1)
        return context.get_dummy_value()

    return lane_function(typing, emit)


# store_*(array, index, lanes): array[index : index + 16] = lanes, integers cut to the item's width.
store_f32 = _storer(FLOAT, (types.float32,), f32)
store_i32 = _storer(I32, (types.int32, types.uint32), i32)
store_u8 = _storer(I8, (types.uint8, types.int8), i32)
store_u16 = _storer(I16, (types.uint16,), i32)
# the same, little-endian, starting at byte `index` of a uint8 array
store_bytes_f32 = _storer(FLOAT, (types.uint8,), f32)
store_bytes_u16 = _storer(I16, (types.uint8,), i32)
store_bytes_i32 = _storer(I32, (types.uint8,), i32)


def _interleaved(builder: Any, rows: list[Any]) -> list[Any]:
    """LLVM for the transpose of 16 vectors of 16: four rounds that interleave row i with row i + 8."""
    low = ir.Constant(I32X, [k // 2 + LANES * (k % 2) for k in range(LANES)])
    high = ir.Constant(I32X, [8 + k // 2 + LANES * (k % 2) for k in range(LANES)])
    for _ in range(4):
        pairs = [(rows[i], rows[i + 8]) for i in range(8)]
        rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in (low, high)]
    return rows


def _transposed_eight(builder: Any, rows: list[Any]) -> list[Any]:
    """LLVM for the transpose of 8 vectors of 8, by shuffles that have an instruction on AVX2 and on what is narrower.

    Single elements of neighbouring rows are interleaved within each four lanes, then pairs, and fours change places.
    """

    def shuffled(a: Any, b: Any, order: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 8), order))

    singles = [
        shuffled(rows[i], rows[i + 1], [start + k for start in (0, 4) for k in (at, 8 + at, at + 1, 9 + at)])
        for i in (0, 2, 4, 6)
        for at in (0, 2)
    ]
    pairs = [
        shuffled(singles[i], singles[i + 2], [start + k for start in (0, 4) for k in (at, at + 1, 8 + at, 9 + at)])
        for i in (0, 1, 4, 5)
        for at in (0, 2)
    ]
    ends = (0, 1, 2, 3, 8, 9, 10, 11)
    return [shuffled(pairs[i], pairs[i + 4], [at + k for k in ends]) for at in (0, 4) for i in range(4)]


def _transposed_typing(slots: types.Type, first: types.Type, array: types.Type, index: types.Type,
                       stride: types.Type) -> Signature | None:  # fmt: skip
    if slots != f32_slots or not isinstance(array, types.Array) or array.dtype != types.float32:
        raise TypingError("load_transposed(slots, first, float32 array, index, stride)")
    return types.void(slots, types.intp, array, types.intp, types.intp)


def _transposed_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    slots, first, array, index, stride = args
    size = LANES if AVX512 else 8
    part = ir.VectorType(FLOAT, size)
    floats = builder.bitcast(builder.gep(slots, [first]), FLOAT.as_pointer())
    for top in range(0, LANES, size):
        starts = [builder.add(index, builder.mul(stride, I64(row))) for row in range(top, top + size)]
        for left in range(0, LANES, size):
            places = [builder.add(start, I64(left)) for start in starts]
            rows = [
                builder.load(address(context, builder, signature.args[2], array, place, part), align=4)
                for place in places
            ]
            columns = _interleaved(builder, rows) if AVX512 else _transposed_eight(builder, rows)
            for column, vector in enumerate(columns, left):
                target = builder.gep(floats, [I64(LANES * column + top)])
                builder.store(vector, builder.bitcast(target, part.as_pointer()), align=4 * size)
    return context.get_dummy_value()


# load_transposed(slots, first, array, index, stride): slots[first + j] lane i = array[index + stride*i + j], j < 16.
load_transposed = lane_function(_transposed_typing, _transposed_emit)


def _gather_typing(array: types.Type, index: types.Type) -> Signature | None:
    if not isinstance(array, types.Array) or index != i32:
        raise TypingError("gather(array, i32 lanes)")
    return (f32 if array.dtype == types.float32 else i32)(array, index)


def _gather_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    array_type = signature.args[0]
    item = context.get_data_type(array_type.dtype)
    result = ir.Constant(ir.VectorType(item, LANES), ir.Undefined)
    for lane in range(LANES):
        index = builder.sext(builder.extract_element(args[1], I32(lane)), ir.IntType(64))
        value = builder.load(address(context, builder, array_type, args[0], index, item))
        result = builder.insert_element(result, value, I32(lane))
    if item in (FLOAT, I32):
        return result
    return builder.sext(result, I32X) if array_type.dtype.signed else builder.zext(result, I32X)


# gather(array, index): lane i = array[index lane i]; float32 arrays give f32, (u)int8, (u)int16 and (u)int32 give i32.
gather = lane_function(_gather_typing, _gather_emit)


def _half_at_typing(array: types.Type, index: types.Type) -> Signature | None:
    return types.float32(array, types.intp)


def _half_at_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    pointer = address(context, builder, signature.args[0], args[0], args[1], I16)
    return emit_from_half_bits(builder, builder.load(pointer, align=1))


def _put_half_typing(array: types.Type, index: types.Type, value: types.Type) -> Signature | None:
    if value != types.float32:
        raise TypingError(f"put_half needs a float32, not {value}")
    return types.void(array, types.intp, types.float32)


def _put_half_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    pointer = address(context, builder, signature.args[0], args[0], args[1], I16)
    builder.store(emit_to_half_bits(builder, args[2]), pointer, align=1)
    return context.get_dummy_value()


# half_at(bytes, index): the float16 at byte `index`, as float32.
half_at = lane_function(_half_at_typing, _half_at_emit)
# put_half(bytes, index, value): writes float32 `value` there, rounded to nearest even (ggml's GGML_FP32_TO_FP16).
put_half = lane_function(_put_half_typing, _put_half_emit)
