"""BF16: the upper half of a float32 per weight; rounded to nearest even."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, helper, kernel
from ..dialect import Array
from ..lanes.arithmetic import LANES, bits, from_bits, load_bytes_u16, load_f32, store_bytes_u16, store_f32


@helper
def _round(x: Array) -> Any:
    raw = bits(x)
    return (raw + 0x7FFF + (raw >> 16 & 1)) >> 16


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    end = len(x) // LANES * LANES
    for i in range(0, end, LANES):
        store_bytes_u16(out, 2 * i, _round(load_f32(x, i)))
    values, halves = np.zeros(LANES, np.float32), np.empty(2 * LANES, np.uint8)
    for i in range(end, len(x)):
        values[i - end] = x[i]
    store_bytes_u16(halves, 0, _round(load_f32(values, 0)))
    for i in range(2 * end, len(out)):
        out[i] = halves[i - 2 * end]


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    end = len(out) // LANES * LANES
    for i in range(0, end, LANES):
        store_f32(out, i, from_bits(load_bytes_u16(blocks, 2 * i) << 16))
    halves, values = np.zeros(2 * LANES, np.uint8), np.empty(LANES, np.float32)
    for i in range(2 * end, len(blocks)):
        halves[i - 2 * end] = blocks[i]
    store_f32(values, 0, from_bits(load_bytes_u16(halves, 0) << 16))
    for i in range(end, len(out)):
        out[i] = values[i - end]
