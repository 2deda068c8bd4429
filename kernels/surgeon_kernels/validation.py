"""Finding NaN and infinity, as llama-quantize does in what it reads and writes (`ggml_validate_row_data`).

A float16, bfloat16 or float32 is invalid when all bits of its exponent are set. That is a test of 16-bit
words: a rule is a list of alternatives, each a pair of (byte offset in the block, bits that are all set).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from .compilation import kernel
from .formats import Format
from .lanes.arithmetic import LANES, lane_bits, load_bytes_i32

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)

Condition = tuple[int, int]


def _half(*offsets: int) -> list[tuple[Condition, Condition]]:
    """Float16 values at these offsets."""
    return [((offset, 0x7C00), (offset, 0x7C00)) for offset in offsets]


# Formats that are not here cannot be invalid.
_RULES: dict[str, list[tuple[Condition, Condition]]] = {
    **dict.fromkeys(("F16", "Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "Q1_0", "Q2_0"), _half(0)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), _half(0)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q8_1", "Q4_K", "Q5_K"), _half(0, 2)),
    "Q2_K": _half(80, 82),
    "Q3_K": _half(108),
    "Q6_K": _half(208),
    "TQ1_0": _half(52),
    "TQ2_0": _half(64),
    # The float16 of IQ1_M lies in the top nibbles of four words; its exponent in those of the last two.
    "IQ1_M": [((52, 0xC000), (54, 0x7000))],
    "MXFP4": [((0, 0x00FF), (0, 0x00FF))],
    "BF16": [((0, 0x7F80), (0, 0x7F80))],
    "F32": [((2, 0x7F80), (2, 0x7F80))],
    "Q8_K": [((2, 0x7F80), (2, 0x7F80))],
}
# Exponent bits of the two halves of a 32-bit word, for the formats that are plain numbers.
_EXPONENTS = {
    "F16": (0x7C00, 0x7C000000),
    "BF16": (0x7F80, 0x7F800000),
    "F32": (0x7F800000, 0x7F800000),
}


@kernel(types.int64(_BYTES, types.int64, types.int64, types.int64, types.int64, types.int64))
def first_block(blocks: Any, size: int, at: int, bits: int, at2: int, bits2: int) -> int:
    """Byte offset of the first block of `size` bytes whose words at `at` and `at2` have these bits set, or -1."""
    for block in range(0, len(blocks), size):
        word = np.int64(blocks[block + at]) | np.int64(blocks[block + at + 1]) << 8
        word2 = np.int64(blocks[block + at2]) | np.int64(blocks[block + at2 + 1]) << 8
        if word & bits == bits and word2 & bits2 == bits2:
            return block
    return -1


@kernel(types.int64(_BYTES, types.int32, types.int32))
def first_word(data: Any, low: Any, high: Any) -> int:
    """Byte offset of the first 32-bit word with all bits of `low` or all of `high` set, or -1.

    Looks at whole groups of 256 bytes only and returns the offset of the rest, negated and less 2, when none is found.
    """
    end = len(data) // 256 * 256
    for start in range(0, end, 256):
        a, b = load_bytes_i32(data, start), load_bytes_i32(data, start + 64)
        c, d = load_bytes_i32(data, start + 128), load_bytes_i32(data, start + 192)
        found = ((a & low) == low) | ((a & high) == high) | ((b & low) == low) | ((b & high) == high)
        found = found | ((c & low) == low) | ((c & high) == high) | ((d & low) == low) | ((d & high) == high)
        if lane_bits(found) != 0:
            for at in range(start, start + 256, 4 * LANES):
                word = load_bytes_i32(data, at)
                lanes = lane_bits(((word & low) == low) | ((word & high) == high))
                for lane in range(LANES):
                    if lanes >> lane & 1:
                        return at + 4 * lane
    return -end - 2


def first_invalid_byte(data: NDArray[np.uint8], format_: Format) -> int:
    """Byte offset of the first invalid block (or value) in flat read-only `data`, or -1."""
    if format_.name == "F64":  # ggml looks at the value as float32, which is what it would be converted to
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(np.frombuffer(data, np.float64).astype(np.float32)))
        return int(bad[0]) * 8 if bad.size else -1
    start = 0
    if format_.name in _EXPONENTS:
        found = int(first_word(data, *_EXPONENTS[format_.name]))
        start = found if found >= 0 else -found - 2  # the word, or the rest, is settled value by value
        data = data[start : start + 4] if found >= 0 else data[start:]
        if not len(data):
            return -1
    offsets = [
        int(first_block(data, format_.block_bytes, at, bits, at2, bits2))
        for (at, bits), (at2, bits2) in _RULES.get(format_.name, [])
    ]
    return min((start + offset for offset in offsets if offset >= 0), default=-1)


def first_nonfinite(values: NDArray[np.float32]) -> int:
    """Index of the first NaN or infinity of a flat read-only float32 array, or -1."""
    from .formats import FORMATS

    at = first_invalid_byte(values.view(np.uint8), FORMATS["F32"])
    return -1 if at < 0 else at // 4
