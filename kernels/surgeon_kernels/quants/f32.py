"""F32: one IEEE float32 per weight; a copy."""

from __future__ import annotations

import numpy as np

from ..compilation import DEQUANTIZE, QUANTIZE, kernel
from ..dialect import Array
from ..lanes.arithmetic import LANES, load_bytes_f32, load_f32, store_bytes_f32, store_f32


@kernel(QUANTIZE)
def quantize(x: Array, columns: int, weights: Array, compat: bool, out: Array) -> None:
    end = len(x) // LANES * LANES
    for i in range(0, end, LANES):
        store_bytes_f32(out, 4 * i, load_f32(x, i))
    values, raw = np.zeros(LANES, np.float32), np.empty(4 * LANES, np.uint8)
    for i in range(end, len(x)):
        values[i - end] = x[i]
    store_bytes_f32(raw, 0, load_f32(values, 0))
    for i in range(4 * end, len(out)):
        out[i] = raw[i - 4 * end]


@kernel(DEQUANTIZE)
def dequantize(blocks: Array, out: Array) -> None:
    end = len(out) // LANES * LANES
    for i in range(0, end, LANES):
        store_f32(out, i, load_bytes_f32(blocks, 4 * i))
    raw, values = np.zeros(4 * LANES, np.uint8), np.empty(LANES, np.float32)
    for i in range(4 * end, len(blocks)):
        raw[i - 4 * end] = blocks[i]
    store_f32(values, 0, load_bytes_f32(raw, 0))
    for i in range(end, len(out)):
        out[i] = values[i - end]
