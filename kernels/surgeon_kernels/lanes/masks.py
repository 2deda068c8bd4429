"""How a truth value per lane is held, and the LLVM for comparing, choosing and asking.

LLVM's own type for it, `<16 x i1>`, fits AVX-512, which has registers for it. On AVX2 LLVM keeps such a value as bytes:
every comparison is packed to them and every choice unpacks them again, which took a sixth of a search. So there a mask
is `<16 x i32>` with all bits of a lane set or none, as AVX2's comparisons give and its choices take it, written with
the processor's intrinsics because LLVM would turn plain comparisons back into its own type.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .processor import AVX2
from .types import FLOAT, I8, I32, I32X, I64, LANES, call_intrinsic, joined, parts

_BITS = ir.IntType(LANES)
_HALF_FLOATS, _HALF_INTS = ir.VectorType(FLOAT, 8), ir.VectorType(I32, 8)
_PREDICATES = {"==": 0, "<": 1, "<=": 2, "!=": 4}  # of AVX's comparison; only != holds for a NaN, as in C


def _half_floats(builder: Any, value: Any) -> list[Any]:
    return [builder.bitcast(half, _HALF_FLOATS) for half in parts(builder, value, 8)]


def compare_floats(builder: Any, sign: str, a: Any, b: Any) -> Any:
    """The mask of a `sign` b for f32 lanes."""
    if not AVX2:
        compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        return compare(sign, a, b)
    if sign in (">", ">="):
        sign, a, b = sign.replace(">", "<"), b, a
    found = [
        call_intrinsic(builder, "llvm.x86.avx.cmp.ps.256", _HALF_FLOATS, [low, high, I8(_PREDICATES[sign])])
        for low, high in zip(parts(builder, a, 8), parts(builder, b, 8), strict=True)
    ]
    return builder.bitcast(joined(builder, *found), I32X)


def compare_ints(builder: Any, sign: str, a: Any, b: Any) -> Any:
    """The mask of a `sign` b for i32 lanes."""
    if not AVX2:
        return builder.icmp_signed(sign, a, b)
    found = [
        builder.sext(builder.icmp_signed(sign, low, high), _HALF_INTS)
        for low, high in zip(parts(builder, a, 8), parts(builder, b, 8), strict=True)
    ]
    return joined(builder, *found)


def choose(builder: Any, condition: Any, a: Any, b: Any) -> Any:
    """Per lane `a` where the mask is set, else `b`; of f32, i32 or masks."""
    if not AVX2:
        return builder.select(condition, a, b)
    operands = [_half_floats(builder, value) for value in (b, a, condition)]
    chosen = [
        call_intrinsic(builder, "llvm.x86.avx.blendv.ps.256", _HALF_FLOATS, list(half))
        for half in zip(*operands, strict=True)
    ]
    return builder.bitcast(joined(builder, *chosen), a.type)


def _sign_bits(builder: Any, half: Any) -> Any:
    return call_intrinsic(builder, "llvm.x86.avx.movmsk.ps.256", I32, [builder.bitcast(half, _HALF_FLOATS)])


def any_set(builder: Any, condition: Any) -> Any:
    """i1: whether any lane is set."""
    if not AVX2:
        return builder.icmp_unsigned("!=", builder.bitcast(condition, _BITS), _BITS(0))
    return builder.icmp_unsigned("!=", _sign_bits(builder, builder.or_(*parts(builder, condition, 8))), I32(0))


def all_set(builder: Any, condition: Any) -> Any:
    """i1: whether all lanes are set."""
    if not AVX2:
        return builder.icmp_unsigned("==", builder.bitcast(condition, _BITS), _BITS(2**LANES - 1))
    return builder.icmp_unsigned("==", _sign_bits(builder, builder.and_(*parts(builder, condition, 8))), I32(255))


def set_bits(builder: Any, condition: Any) -> Any:
    """i64 with lane i at bit i."""
    if not AVX2:
        return builder.zext(builder.bitcast(condition, _BITS), I64)
    # Of the two intrinsics LLVM would make one comparison of sixteen, and pack it.
    kind = ir.FunctionType(I32, [_HALF_FLOATS])
    low, high = (
        builder.asm(kind, "vmovmskps $1, $0", "=r,x", [half], False) for half in _half_floats(builder, condition)
    )
    return builder.zext(builder.or_(low, builder.shl(high, I32(8))), I64)
