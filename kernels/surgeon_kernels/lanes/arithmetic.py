"""Arithmetic on SIMD lanes, for kernels that read like the scalar algorithm.

    f32, i32, mask                    the lane types (types.py); 16 lanes each
    + - * /   < <= > >= == !=         on f32; a float32 scalar on either side is broadcast
    + - * & | ^ << >>  < ... !=       on i32 (>> is arithmetic); an integer scalar is broadcast
    & | ^ ~                           on mask
    -x                                sign flip of f32, negation of i32
    x[i], slots[i], slots[i] = x      one lane as a scalar; lanes of a slot
    splat(s), int_splat(s)            a float32 or an integer in every lane
    select(m, a, b)                   per lane a where m, else b (f32, i32 or mask)
    minimum, maximum                  C's `a < b ? a : b` and `a > b ? a : b` (f32 or i32)
    absolute, square_root, floor      of f32
    nearest(v)                        round half to even as f32, exact for |v| <= 2**22
    nearest_within(v, low, high)      the same, cut to low .. high (scalars), exact for |v| <= 2**22
    nearest_int(v)                    ggml's `nearest_int` as i32, its wrapped garbage for larger values included
    to_float, to_int                  int32 <-> float32, towards zero; -2**31 for what does not fit, as on x86
    bits, from_bits                   the float32's bits as i32, and back
    half_bits(x), from_half_bits(b)   f32 <-> float16 bits in the low half of i32
    any_lane, all_lanes, lane_bits    of a mask; lane_bits gives an int64 with lane i at bit i
    first_bit(n)                      number of the lowest bit set in an int64 that is not 0
    first_lane(m)                     number of the first lane that is set, 16 for none
    largest, smallest, total          reductions to a scalar (total: i32 only, because float sums have an order)
    with_lane(x, i, s)                x with lane i replaced
    lane_numbers()                    i32 lanes 0 .. 15
    two_smallest(a, b)                the two smallest of pairs a <= b of f32 lanes, as scalars
    look_up(table, index)             lane i = table lane index[i] (f32 or i32 table, index 0 .. 15)
    look_up_eight(table, index)       lane i = table lane index[i] & 7; lanes 8 .. 15 of the table repeat 0 .. 7

Python's float literals are float64 and are refused: write np.float32(0.5). Loads and stores are in memory.py and
are re-exported here. Nothing here contracts or reorders: every operation is one IEEE float32 operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, Signature, infer_global
from numba.extending import lower_builtin

from .halves import emit_from_half_bits, emit_to_half_bits
from .masks import all_set, any_set, choose, compare_floats, compare_ints, set_bits
from .memory import (
    gather,
    half_at,
    int_slots,
    load_bytes_f32,
    load_bytes_i32,
    load_bytes_u16,
    load_f32,
    load_i8,
    load_i32,
    load_transposed,
    load_u8,
    load_u16,
    put_half,
    slots,
    store_bytes_f32,
    store_bytes_i32,
    store_bytes_u16,
    store_f32,
    store_i32,
    store_u8,
    store_u16,
)
from .processor import AVX2
from .tables import look_up, look_up_eight
from .types import (
    F32X,
    I1,
    I16,
    I32,
    I32X,
    I64,
    LANES,
    LaneType,
    SlotsType,
    broadcast,
    call_intrinsic,
    f32,
    f32_slots,
    fixed,
    i32,
    i32_slots,
    joined,
    lane_function,
    mask,
    parts,
    splat_constant,
)

__all__ = [
    "LANES", "absolute", "all_lanes", "any_lane", "bits", "f32", "f32_slots", "first_bit", "floor", "from_bits",
    "from_half_bits", "gather", "half_at", "half_bits", "i32", "i32_slots", "int_slots", "int_splat", "lane_bits",
    "lane_numbers", "largest", "load_bytes_f32", "load_bytes_i32", "load_bytes_u16", "load_f32", "load_i8", "load_i32",
    "load_transposed", "load_u8", "load_u16", "look_up", "look_up_eight", "mask", "maximum", "minimum", "nearest",
    "nearest_int", "nearest_within", "put_half", "select", "slots", "smallest", "splat", "square_root",
    "store_bytes_f32", "store_bytes_i32", "store_bytes_u16", "store_f32", "store_i32", "store_u8", "store_u16",
    "to_float", "to_int", "total", "two_smallest", "with_lane",
]  # fmt: skip

_ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves the integer part in the low bits of the mantissa


def _scalar_fits(lanes: LaneType, scalar: types.Type) -> bool:
    if lanes == f32:
        return bool(scalar == types.float32)
    return lanes == i32 and isinstance(scalar, types.Integer)


def _operator(operation: Any, emitters: dict[LaneType, Callable[..., Any]], result: LaneType | None = None) -> None:
    """Give `operation` to the lane types in `emitters`, with a scalar allowed on either side."""

    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: Any) -> Signature | None:
            if len(args) != 2:
                return None
            a, b = args
            for lanes in emitters:
                output = result or lanes
                if a == lanes and b == lanes:
                    return output(a, b)
                if a == lanes and _scalar_fits(lanes, b):
                    return output(a, lanes.scalar)
                if b == lanes and _scalar_fits(lanes, a):
                    return output(lanes.scalar, b)
            return None

    infer_global(operation)(Template)
    for lanes, emit in emitters.items():
        _lower(operation, lanes, emit)


def _lower(operation: Any, lanes: LaneType, emit: Callable[..., Any]) -> None:
    def lowered(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        a, b = (
            value if isinstance(kind, LaneType) else broadcast(builder, value)
            for kind, value in zip(signature.args, args, strict=True)
        )
        return emit(builder, a, b)

    for pair in ((lanes, lanes), (lanes, lanes.scalar), (lanes.scalar, lanes)):
        if lanes != mask or pair == (mask, mask):
            lower_builtin(operation, *pair)(lowered)


_operator(operator.add, {f32: lambda b, x, y: b.fadd(x, y), i32: lambda b, x, y: b.add(x, y)})
_operator(operator.sub, {f32: lambda b, x, y: b.fsub(x, y), i32: lambda b, x, y: b.sub(x, y)})
_operator(operator.mul, {f32: lambda b, x, y: b.fmul(x, y), i32: lambda b, x, y: b.mul(x, y)})
_operator(operator.truediv, {f32: lambda b, x, y: b.fdiv(x, y)})
_operator(operator.lshift, {i32: lambda b, x, y: b.shl(x, y)})
_operator(operator.rshift, {i32: lambda b, x, y: b.ashr(x, y)})
_operator(operator.and_, {i32: lambda b, x, y: b.and_(x, y), mask: lambda b, x, y: b.and_(x, y)})
_operator(operator.or_, {i32: lambda b, x, y: b.or_(x, y), mask: lambda b, x, y: b.or_(x, y)})
_operator(operator.xor, {i32: lambda b, x, y: b.xor(x, y), mask: lambda b, x, y: b.xor(x, y)})


def _comparison(operation: Any, sign: str) -> None:
    emitters = {
        f32: lambda b, x, y: compare_floats(b, sign, x, y),
        i32: lambda b, x, y: compare_ints(b, sign, x, y),
    }
    _operator(operation, emitters, mask)


for _operation, _sign in (
    (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "=="),
    (operator.ne, "!="),
):  # fmt: skip
    _comparison(_operation, _sign)


def _unary(operation: Any, emitters: dict[LaneType, Callable[..., Any]]) -> None:
    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: Any) -> Signature | None:
            return args[0](args[0]) if len(args) == 1 and args[0] in emitters else None

    infer_global(operation)(Template)
    for lanes, emit in emitters.items():
        lower_builtin(operation, lanes)(lambda context, builder, signature, args, emit=emit: emit(builder, args[0]))


_unary(operator.neg, {f32: lambda b, x: b.fneg(x), i32: lambda b, x: b.neg(x)})
_unary(operator.invert, {i32: lambda b, x: b.not_(x), mask: lambda b, x: b.not_(x)})


class _GetItem(AbstractTemplate):
    def generic(self, args: tuple[types.Type, ...], kws: Any) -> Signature | None:
        if len(args) != 2 or not isinstance(args[1], types.Integer):
            return None
        if isinstance(args[0], SlotsType):
            return args[0].element(args[0], types.intp)
        return args[0].scalar(args[0], types.intp) if isinstance(args[0], LaneType) else None


class _SetItem(AbstractTemplate):
    def generic(self, args: tuple[types.Type, ...], kws: Any) -> Signature | None:
        if isinstance(args[0], SlotsType) and args[2] == args[0].element:
            return types.void(args[0], types.intp, args[2])
        return None


infer_global(operator.getitem)(_GetItem)
infer_global(operator.setitem)(_SetItem)


def _get_slot(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    return builder.load(builder.gep(args[0], [args[1]]), align=64)


def _set_slot(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    builder.store(args[2], builder.gep(args[0], [args[1]]), align=64)
    return context.get_dummy_value()


for _slots in (f32_slots, i32_slots):
    lower_builtin(operator.getitem, _slots, types.intp)(_get_slot)
    lower_builtin(operator.setitem, _slots, types.intp, _slots.element)(_set_slot)
for _lanes in (f32, i32):
    lower_builtin(operator.getitem, _lanes, types.intp)(
        lambda context, builder, signature, args: builder.extract_element(args[0], builder.trunc(args[1], I32))
    )


splat = fixed(f32(types.float32), broadcast)
int_splat = fixed(i32(types.int32), broadcast)
lane_numbers = fixed(i32(), lambda b: ir.Constant(I32X, list(range(LANES))))


def _same(*kinds: LaneType) -> Callable[[types.Type, types.Type], Signature | None]:
    def typing(a: types.Type, b: types.Type) -> Signature | None:
        return a(a, b) if a == b and a in kinds else None

    return typing


def _extreme(sign: str) -> Any:
    def emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        a, b = args
        compare = builder.fcmp_ordered if signature.return_type == f32 else builder.icmp_signed
        return builder.select(compare(sign, a, b), a, b)

    return lane_function(_same(f32, i32), emit)


minimum, maximum = _extreme("<"), _extreme(">")


def _select_typing(condition: types.Type, a: types.Type, b: types.Type) -> Signature | None:
    return a(mask, a, b) if condition == mask and a == b and isinstance(a, LaneType) else None


select = lane_function(_select_typing, lambda context, builder, signature, args: choose(builder, *args))


def _math(name: str) -> Any:
    return fixed(f32(f32), lambda b, x: call_intrinsic(b, f"llvm.{name}.v{LANES}f32", F32X, [x]))


absolute, square_root, floor = _math("fabs"), _math("sqrt"), _math("floor")


def _emit_nearest(builder: Any, value: Any) -> Any:
    rounder = splat_constant(_ROUNDER)
    return builder.fsub(builder.fadd(value, rounder), rounder)


def _emit_nearest_int(builder: Any, value: Any) -> Any:
    raised = builder.bitcast(builder.fadd(value, splat_constant(_ROUNDER)), I32X)
    low = builder.and_(raised, splat_constant(0x7FFFFF, I32X))
    return builder.sub(low, splat_constant(0x400000, I32X))


def _emit_to_int(builder: Any, value: Any) -> Any:
    limit = splat_constant(2.0**31)
    size = call_intrinsic(builder, f"llvm.fabs.v{LANES}f32", F32X, [value])
    fits = builder.fcmp_ordered("<", size, limit)
    return builder.select(fits, builder.fptosi(value, I32X), splat_constant(-(2**31), I32X))


def _emit_nearest_within(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """AVX2 rounds in one instruction; elsewhere floats of one sign are compared as the integers of their bits.

    Measured: the first saves a tenth of a search on Zen 3, the second is faster on Zen 4 with AVX-512, which compares
    integers beside its arithmetic. SSE2 has no instruction that rounds.
    """
    limits = [broadcast(builder, limit) for limit in (low, high)]
    if AVX2:
        halves = zip(*(parts(builder, lanes, 8) for lanes in (value, *limits)), strict=True)
        return joined(builder, *(_rounded_within(builder, *half) for half in halves))
    rounder = splat_constant(_ROUNDER)
    lowest, highest = (builder.bitcast(builder.fadd(limit, rounder), I32X) for limit in limits)
    found = builder.bitcast(builder.fadd(value, rounder), I32X)
    found = builder.select(builder.icmp_signed(">", found, lowest), found, lowest)
    found = builder.select(builder.icmp_signed("<", found, highest), found, highest)
    return builder.fsub(builder.bitcast(found, F32X), rounder)


def _rounded_within(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """Of eight lanes, by AVX's own instructions: LLVM would make two of a maximum with zero."""
    rounded = call_intrinsic(builder, "llvm.roundeven.v8f32", value.type, [value])
    raised = call_intrinsic(builder, "llvm.x86.avx.max.ps.256", value.type, [rounded, low])
    return call_intrinsic(builder, "llvm.x86.avx.min.ps.256", value.type, [raised, high])


nearest = fixed(f32(f32), _emit_nearest)
nearest_within = fixed(f32(f32, types.float32, types.float32), _emit_nearest_within)
nearest_int = fixed(i32(f32), _emit_nearest_int)
to_int = fixed(i32(f32), _emit_to_int)
to_float = fixed(f32(i32), lambda b, x: b.sitofp(x, F32X))
bits = fixed(i32(f32), lambda b, x: b.bitcast(x, I32X))
from_bits = fixed(f32(i32), lambda b, x: b.bitcast(x, F32X))


def _half_bits_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    return builder.zext(emit_to_half_bits(builder, args[0]), I32X)


def _from_half_bits_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    return emit_from_half_bits(builder, builder.trunc(args[0], ir.VectorType(I16, LANES)))


half_bits = lane_function(lambda lanes: i32(lanes) if lanes == f32 else None, _half_bits_emit)
from_half_bits = lane_function(lambda lanes: f32(lanes) if lanes == i32 else None, _from_half_bits_emit)

first_bit = fixed(types.int64(types.int64), lambda b, x: b.cttz(x, I1(0)))
any_lane = fixed(types.boolean(mask), any_set)
all_lanes = fixed(types.boolean(mask), all_set)
lane_bits = fixed(types.int64(mask), set_bits)
first_lane = fixed(types.int64(mask), lambda b, m: b.cttz(b.or_(set_bits(b, m), I64(1 << LANES)), I1(0)))


def _emit_reduction(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Fold the upper half of the lanes onto the lower until one is left."""
    while value.type.count > 1:
        value = combine(*parts(builder, value, value.type.count // 2))
    return builder.extract_element(value, I32(0))


def _reduction_typing(lanes: types.Type) -> Signature | None:
    return lanes.scalar(lanes) if lanes in (f32, i32) else None


def _reduction(sign: str) -> Any:
    def emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
        compare = builder.fcmp_ordered if signature.args[0] == f32 else builder.icmp_signed
        return _emit_reduction(builder, args[0], lambda a, b: builder.select(compare(sign, a, b), a, b))

    return lane_function(_reduction_typing, emit)


largest, smallest = _reduction(">"), _reduction("<")


def _two_smallest_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    def lower(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    def upper(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    least, second = args
    while least.type.count > 1:
        half = least.type.count // 2
        a, b = parts(builder, least, half)
        least, second = lower(a, b), lower(upper(a, b), lower(*parts(builder, second, half)))
    results = [builder.extract_element(value, I32(0)) for value in (least, second)]
    return context.make_tuple(builder, signature.return_type, results)


two_smallest = lane_function(
    lambda a, b: types.UniTuple(types.float32, 2)(a, b) if a == b == f32 else None, _two_smallest_emit
)
total = fixed(types.int32(i32), lambda b, x: _emit_reduction(b, x, b.add))


def _with_lane_typing(lanes: types.Type, index: types.Type, value: types.Type) -> Signature | None:
    return lanes(lanes, types.intp, lanes.scalar) if isinstance(lanes, LaneType) and lanes != mask else None


with_lane = lane_function(
    _with_lane_typing,
    lambda context, builder, signature, args: builder.insert_element(args[0], args[2], builder.trunc(args[1], I32)),
)
