"""Twins (see twins.py) of the floats of 16 and 32 bits, of the 4-bit floats and of the formats of 1, 2 and 3 values.

None of them uses an importance matrix. The floats take any number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from twins import F, Twin, Vector, fields, half, nibbles, round_away, sequential_sum

# E2M1, doubled.
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def f32(x: Vector, weights: Vector | None) -> bytes:
    return b"".join(int(v.view(np.uint32)).to_bytes(4, "little") for v in x)


def f16(x: Vector, weights: Vector | None) -> bytes:
    return b"".join(half(v) for v in x)


def bf16(x: Vector, weights: Vector | None) -> bytes:
    words = [int(v.view(np.uint32)) for v in x]
    return b"".join((word + 0x7FFF + (word >> 16 & 1) >> 16).to_bytes(2, "little") for word in words)


def largest_size(x: Vector) -> np.float32:
    return max(abs(v) for v in x)


def ternary(x: Vector) -> tuple[np.float32, list[int]]:
    """The largest size, and 0, 1 or 2 for each value: in units of it, whole, plus 1."""
    d = largest_size(x)
    inverse = F(1) / d if d != 0 else F(0)
    return d, [round_away(v * inverse) + 1 for v in x]


def q1_0(x: Vector, weights: Vector | None) -> bytes:
    d = sequential_sum([abs(v) for v in x]) / F(128)
    return half(d) + fields([int(v >= 0) for v in x], 1).to_bytes(16, "little")


def q2_0(x: Vector, weights: Vector | None) -> bytes:
    d, t = ternary(x)
    return half(d) + fields(t, 2).to_bytes(16, "little")


def base_3(digits: Sequence[int]) -> int:
    """Five digits, the first most significant, as the fraction of 243 in units of 1/256, rounded up."""
    value = 0
    for digit in digits:
        value = 3 * value + digit
    return (256 * value + 242) // 243


def tq1_0(x: Vector, weights: Vector | None) -> bytes:
    d, t = ternary(x)
    qs = [base_3(t[m:160:32]) for m in range(32)] + [base_3(t[160 + m : 240 : 16]) for m in range(16)]
    return bytes(qs) + bytes(base_3([*t[240 + m :: 4], 0]) for m in range(4)) + half(d)


def tq2_0(x: Vector, weights: Vector | None) -> bytes:
    d, t = ternary(x)
    return bytes(fields(t[128 * c + m : 128 * c + 128 : 32], 2) for c in range(2) for m in range(32)) + half(d)


def nearest_fp4(value: np.float32, d: np.float32) -> int:
    """The code whose value is nearest in units of d, the first of equals."""
    return min(range(16), key=lambda code: abs(F(FP4[code]) * d - value))


def mxfp4(x: Vector, weights: Vector | None) -> bytes:
    top = largest_size(x)
    # As C's log2f, to which a number just below a power of two may be the power; that of numpy is a unit off at times.
    e = math.floor(F(math.log2(top))) - 2 + 127 if top > 0 else 0
    d = F(math.ldexp(1, e - 128))
    return bytes([e]) + nibbles([nearest_fp4(v, d) for v in x])


def to_ue4m3(value: np.float32) -> int:
    """Four bits of exponent (bias 7) and three of mantissa, without sign; half up."""
    if value <= 0:
        return 0
    word = int(value.view(np.uint32))
    exponent = (word >> 23) - 127 + 7
    if exponent <= 0:
        return min(7, int(value * F(512) + F(0.5)))
    mantissa = (word >> 20 & 7) + (word >> 19 & 1)
    # From 256 on, also where only the mantissa's carry leads there, ggml stores its largest: 448.
    return (exponent << 3) + mantissa if exponent + (mantissa >> 3) < 15 else 0x7E


def from_ue4m3(code: int) -> np.float32:
    """Half of the E4M3 value, as FP4 is doubled."""
    exponent, mantissa = code >> 3, code & 7
    return F(math.ldexp(mantissa, -10) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 11))


def nvfp4(x: Vector, weights: Vector | None) -> bytes:
    scales, quants = bytearray(), bytearray()
    for g in range(0, 64, 16):
        scales.append(to_ue4m3(largest_size(x[g : g + 16]) / F(6)))
        codes = [nearest_fp4(v, from_ue4m3(scales[-1])) for v in x[g : g + 16]]
        quants += bytes(codes[j] | codes[j + 8] << 4 for j in range(8))
    return bytes(scales + quants)


TWINS: dict[str, Twin] = {
    "F32": f32, "F16": f16, "BF16": bf16, "Q1_0": q1_0, "Q2_0": q2_0, "TQ1_0": tq1_0, "TQ2_0": tq2_0,
    "MXFP4": mxfp4, "NVFP4": nvfp4,
}  # fmt: skip
