"""Restoring IQ2 and IQ3 weights: sixteen at a time from packed grid points, a scale and sixteen sign bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..dialect import Array, F, Lanes
from ..lanes.arithmetic import bits, from_bits, int_splat, lane_numbers, look_up, select, splat


@helper
def grid_values(values: tuple[int, ...]) -> Lanes:
    """A table with the value of level l at place 2 * l + 1, which is how points are packed."""
    table = splat(F(0))
    for level in range(len(values)):
        table = select(lane_numbers() == 2 * level + 1, splat(F(values[level])), table)
    return table


@helper
def of_two(a: int, b: int) -> Lanes:
    """Two packed points of eight coordinates, spread: each lane has its own coordinate in the low four bits."""
    packed = select(lane_numbers() < 8, int_splat(a), int_splat(b))
    return packed >> (lane_numbers() & 7) * 4 & 15


@helper
def of_four(a: int, b: int, c: int, d: int) -> Lanes:
    """Four packed points of four coordinates, spread likewise."""
    low = select(lane_numbers() < 4, int_splat(a), int_splat(b))
    high = select(lane_numbers() < 12, int_splat(c), int_splat(d))
    return select(lane_numbers() < 8, low, high) >> (lane_numbers() & 3) * 4 & 15


@helper
def restore(spread: Lanes, values: Lanes, scale: float, signs: int) -> Lanes:
    """scale * value of each lane, negative where its bit of `signs` is set."""
    sign = (int_splat(signs) >> lane_numbers() & 1) << 31
    return from_bits(bits(scale * look_up(values, spread)) ^ sign)


@helper
def word_at(blocks: Array, at: int) -> Any:
    """The little-endian 32-bit number at byte `at`, without sign."""
    word = np.int64(blocks[at]) | np.int64(blocks[at + 1]) << 8
    return word | np.int64(blocks[at + 2]) << 16 | np.int64(blocks[at + 3]) << 24
