"""What the formats without a search share: the largest size in a block, and the ternary codes made with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..dialect import Array, F
from ..lanes.arithmetic import LANES, absolute, largest, load_f32, maximum


@helper
def largest_size(x: Array, start: int, count: int) -> Any:
    """max |x[start : start + count]|; `count` is a multiple of 16."""
    size = absolute(load_f32(x, start))
    for j in range(LANES, count, LANES):
        size = maximum(size, absolute(load_f32(x, start + j)))
    return largest(size)


@helper
def ternary(v: Any) -> Any:
    """0, 1 or 2: `v` rounded half away from zero, plus 1, for |v| <= 1."""
    return np.int32(1) + np.int32(v >= F(0.5)) - np.int32(v <= F(-0.5))


@helper
def ternary_inverse(d: Any) -> Any:
    """1 / d; 0, which makes all codes 1, where there is none (ggml's conversion of an infinity gives that code too)."""
    inverse = F(1) / d if d != F(0) else F(0)
    return inverse if inverse < F(np.inf) else F(0)
