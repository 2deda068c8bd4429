"""Tiles: sixteen groups of weights, one per SIMD lane, for the kernels of the IQ formats.

A tile is copied into two small buffers first, so that the last tile of a slab (filled up with zeros) and rows that end
inside a tile need no case of their own in the searches. Buffers hold group after group: float32[16 * group].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compilation import helper
from ..dialect import Array, F, Lanes
from ..lanes.arithmetic import LANES, lane_numbers, load_transposed, maximum, select, splat, square_root


class Tile(NamedTuple):
    """Buffers of a tile, float32[16 * group] each: the weights of the model and their importances."""

    x: Array
    importance: Array


@helper
def tile_space(group: int) -> Tile:
    return Tile(np.zeros(LANES * group, np.float32), np.zeros(LANES * group, np.float32))


@helper
def stage(x: Array, columns: int, weights: Array, first: int, group: int, tile: Tile) -> None:
    """Copy groups `first ... first + 15` of the slab, and the weights of their columns if there are any."""
    groups = len(x) // group
    for lane in range(LANES):
        start = (first + lane) * group
        inside = first + lane < groups
        column = start % columns
        for j in range(group):
            tile.x[lane * group + j] = x[start + j] if inside else F(0)
        if len(weights) > 0:
            for j in range(group):
                tile.importance[lane * group + j] = weights[column + j]


@helper
def load_groups(slots: Lanes, tile: Array, group: int) -> None:
    """slots[j] lane i = element j of group i; `group` is 16 or 32."""
    for first in range(0, group, LANES):
        load_transposed(slots, first, tile, first, group)


@helper
def superblock_sums(tile: Array, group: int) -> Lanes:
    """Per lane the sum of squares of the 256 weights around its group (of 16 or 32), in the order of the weights."""
    low = F(0)
    high = F(0)
    second = (group - 16) * LANES  # 0 or 256: groups of 16 make one superblock, groups of 32 make two
    for j in range(256):
        low = low + tile[j] * tile[j]
        high = high + tile[second + j] * tile[second + j]
    return select(lane_numbers() < 8, splat(low), splat(high))


@helper
def importance(sigma2: Lanes, x: Lanes, imatrix: Lanes) -> Lanes:
    """ggml's weight of a squared error: the importance times sqrt(sigma2 + x * x)."""
    return imatrix * square_root(sigma2 + x * x)


@helper
def sum_of_squares(x: Lanes, group: int) -> Lanes:
    """Per lane the sum of squares of its group, in order."""
    total = splat(F(0))
    for j in range(group):
        total = total + x[j] * x[j]
    return total


@helper
def is_dead(w: Lanes, group: int) -> Lanes:
    """Per lane whether all importances of its group are zero."""
    largest = w[0]
    for j in range(1, group):
        largest = maximum(largest, w[j])
    return largest == F(0)


@helper
def weigh(x: Lanes, w: Lanes, group: int, sigma2: Lanes, base: Lanes, weighted: bool, compat: bool) -> None:
    """Turn the importances in `w` (if `weighted`) into the weights of the searches; without any, base + x * x.

    Where the importances of a whole group are zero, ggml's sums vanish, it finds no scale and erases or garbles the
    group. Unless `compat`, such a group is weighed as if there were no importance matrix.
    """
    dead = splat(F(1)) == splat(F(0))
    if not weighted:
        dead = ~dead
    elif not compat:
        dead = is_dead(w, group)
    for j in range(group):
        w[j] = select(dead, base + x[j] * x[j], importance(sigma2, x[j], w[j]))


@helper
def load_superblock_tile(x: Array, columns: int, weights: Array, first: int, group: int, tile: Tile, xs: Lanes,
                         ws: Lanes, factor: float, base: float, compat: bool) -> None:  # fmt: skip
    """Weights of the model into `xs` and weights of the search into `ws`, for the formats with superblocks of 256.

    sigma2 of the superblock is `factor` * sum of squares; the weights without importances are base * sigma2 + x * x.
    """
    stage(x, columns, weights, first, group, tile)
    load_groups(xs, tile.x, group)
    load_groups(ws, tile.importance, group)
    sigma2 = superblock_sums(tile.x, group) * factor
    weigh(xs, ws, group, sigma2, base * sigma2, len(weights) > 0, compat)
