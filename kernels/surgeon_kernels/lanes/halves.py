"""float16 to float32 and back, for scalars and lanes: the processor's instruction, or integer arithmetic without one.

Where a processor has no instruction, LLVM would call a library function that is not there. Both ways round to nearest
even, as ggml's GGML_FP32_TO_FP16, and agree on everything but the payload of a NaN.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .processor import HALVES
from .types import FLOAT, HALF, I16, I32


def _like(value: Any, element: ir.Type) -> ir.Type:
    """The type of `value` with another element: a vector stays a vector."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(kind: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def emit_to_half_bits(builder: Any, value: Any) -> Any:
    """LLVM for the float16 bits (i16) of the float `value`."""
    if HALVES:
        return builder.bitcast(builder.fptrunc(value, _like(value, HALF)), _like(value, I16))
    integer = _like(value, I32)

    def number(constant: int) -> ir.Constant:
        return _constant(integer, constant)

    raw = builder.bitcast(value, integer)
    size = builder.and_(raw, number(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, number(13)), number(1))
    rebiased = builder.add(size, number(0xFFF - 0x38000000 & 0xFFFFFFFF))
    normal = builder.lshr(builder.add(rebiased, odd), number(13))
    # Below 2**-14: adding 0.5, whose last bit is worth 2**-24, rounds as the denormals of float16 do.
    half = _constant(value.type, 0.5)
    raised = builder.bitcast(builder.fadd(builder.bitcast(size, value.type), half), integer)
    denormal = builder.sub(raised, number(0x3F000000))
    is_nan = builder.icmp_unsigned(">", size, number(0x7F800000))
    special = builder.select(is_nan, number(0x7E00), number(0x7C00))
    finite = builder.select(builder.icmp_unsigned("<", size, number(0x38800000)), denormal, normal)
    magnitude = builder.select(builder.icmp_unsigned(">=", size, number(0x47800000)), special, finite)
    sign = builder.and_(builder.lshr(raw, number(16)), number(0x8000))
    return builder.trunc(builder.or_(magnitude, sign), _like(value, I16))


def emit_from_half_bits(builder: Any, value: Any) -> Any:
    """LLVM for the float whose float16 bits are `value` (i16)."""
    if HALVES:
        return builder.fpext(builder.bitcast(value, _like(value, HALF)), _like(value, FLOAT))
    integer, floating = _like(value, I32), _like(value, FLOAT)
    wide = builder.zext(value, integer)
    size = builder.shl(builder.and_(wide, _constant(integer, 0x7FFF)), _constant(integer, 13))
    scaled = builder.fmul(builder.bitcast(size, floating), _constant(floating, 2.0**112))
    is_special = builder.icmp_unsigned(">=", size, _constant(integer, 0x7C00 << 13))
    special = builder.or_(size, _constant(integer, 0x7F800000))
    magnitude = builder.select(is_special, special, builder.bitcast(scaled, integer))
    sign = builder.shl(builder.and_(wide, _constant(integer, 0x8000)), _constant(integer, 16))
    return builder.bitcast(builder.or_(magnitude, sign), floating)
