"""Blocks of a slab in groups of sixteen, one per lane.

A tile is sixteen blocks that are quantized together. Blocks of a slab are independent, so a tile crosses rows freely,
and one that is not full repeats its last block: the same bytes are written twice. Blocks whose slice of the importance
matrix is zero go into tiles of their own, because they are quantized as if there were none (see `dead_slices`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..dialect import Array, F
from ..lanes.arithmetic import LANES, load_f32, load_transposed, splat, store_f32


@helper
def dead_slices(weights: Array, size: int, compat: bool) -> Any:
    """Which blocks of a row ignore the importance matrix: uint8[blocks per row], or [1] where there is no matrix.

    A slice that is zero throughout makes every sum of a search vanish, and ggml then writes the block as zeros: the
    weights that feed a channel which never fired in calibration are erased. Unless `compat`, such a block gets the
    weights used without an importance matrix.
    """
    if len(weights) == 0:
        return np.ones(1, np.uint8)
    dead = np.zeros(len(weights) // size, np.uint8)
    if not compat:
        for block in range(len(dead)):
            largest = F(0)
            for i in range(block * size, (block + 1) * size):
                largest = max(largest, weights[i])
            dead[block] = largest == 0
    return dead


@helper
def next_tile(dead: Any, wanted: int, block: int, blocks: int, chosen: Any) -> tuple[int, int]:
    """Fill `chosen` (int64[16]) with the next blocks whose deadness is `wanted`, searching from `block` on.

    Returns how many were found and where to go on; a tile that is not full repeats its last block.
    """
    count = 0
    while block < blocks and count < LANES:
        if dead[block % len(dead)] == wanted:
            chosen[count] = block
            count += 1
        block += 1
    for lane in range(count, LANES):
        chosen[lane] = chosen[max(count - 1, 0)]
    return count, block


@helper
def pack(source: Any, period: int, chosen: Any, size: int, tile: Any) -> None:
    """Copy the sixteen chosen blocks of `size` floats (a multiple of 16) into `tile`; block b starts at b % period."""
    for lane in range(LANES):
        start = chosen[lane] % period * size
        for i in range(0, size, LANES):
            store_f32(tile, lane * size + i, load_f32(source, start + i))


@helper
def sums_of_squares(tile: Any, size: int, slots: Any) -> Any:
    """Sum of squares of each packed block, in order, as lanes. `slots`: room for sixteen."""
    result = splat(F(0))
    for i in range(0, size, LANES):
        load_transposed(slots, 0, tile, i, size)
        for j in range(LANES):
            result = result + slots[j] * slots[j]
    return result
