"""A round: scales and codes of a swept tile improved in turn under all of H; the loss never rises.

Panel by panel (256 columns; a superblock, where there are any) G = H e is formed once, which is nearly all of the work.
Then d and dmin of the superblock take their best values, and group by group its scale and minimum, and each of its
codes: the nearest level to where the loss is least with all others held. G follows every change inside the panel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from ..compilation import helper, kernel
from ..lanes.arithmetic import LANES, load_f32, load_u8, splat, store_f32, store_u8
from ..lanes.fused import add_scaled, fused
from .products import F32, PANEL, PANEL_WIDTH, STRIP, clear, column_start, four_products, panel_products
from .scales import group_step, refresh_errors, superblock_step
from .sweep import add_to_loss
from .tiles import FIXED, PER_SUPERBLOCK, RULES, TILE, inverse, level_of, nearest_level, step_and_offset

_PANEL_LANES = PANEL_WIDTH * LANES


@helper
def _descend(h: Any, rules: Any, tile: Any, v: int, start: int, first: int, g: Any, at_g: int, delta: Any,
             moved: Any) -> Any:  # fmt: skip
    """Codes of one group, one after another; returns by how much the loss falls.

    g: G of the group before any of these moves; moved: [group], room for them.
    """
    gain = splat(np.float32(0))
    for k in range(rules.group):
        column = start + first + k
        at_h = column_start(tile.columns, column) + STRIP * first
        gradient = load_f32(g, at_g + LANES * k)
        for j in range(k):
            gradient = add_scaled(gradient, h, at_h + STRIP * j, load_f32(moved, LANES * j))
        curvature = h[at_h + STRIP * k]
        at = LANES * (v * tile.columns + column)
        w, error = load_f32(tile.weights, at), load_f32(tile.errors, at)
        step, offset = step_and_offset(rules, tile, v, column)
        best = w - error + gradient * (np.float32(1) / curvature)
        level, code = nearest_level(rules, (best + offset) * inverse(step))
        new = w - (step * level - offset)
        move = new - error
        store_u8(tile.codes, at, code)
        store_f32(tile.errors, at, new)
        store_f32(moved, LANES * k, move)
        store_f32(delta, LANES * (first + k), load_f32(delta, LANES * (first + k)) + move)
        gain = gain - fused(np.float32(2) * gradient, move, move * move * curvature)
    return gain


@kernel(types.void(F32, F32, RULES, TILE, types.int64, types.int64))
def improve(h: Any, sums: Any, rules: Any, tile: Any, begin: int, end: int) -> None:
    """A round over columns `begin` (of a panel) to `end` of the tile; its loss follows.

    h: H in strips; sums: float32[columns * groups of a panel], H summed over the groups of its panel, for types with
    minima.
    """
    g = np.empty(tile.vectors * _PANEL_LANES, np.float32)
    level, delta = np.empty(_PANEL_LANES, np.float32), np.empty(_PANEL_LANES, np.float32)
    a, ha = np.empty(_PANEL_LANES, np.float32), np.empty(_PANEL_LANES, np.float32)
    for start in range(begin, end, PANEL):
        width = min(PANEL, tile.columns - start)
        panel_products(h, tile.errors, tile.columns, tile.vectors, start, width, g)
        for v in range(tile.vectors):
            gain = splat(np.float32(0))
            for k in range(width):
                store_f32(
                    level, LANES * k, level_of(rules, load_u8(tile.codes, LANES * (v * tile.columns + start + k)))
                )
            clear(delta, width)
            at_g = v * _PANEL_LANES
            if rules.scaling == PER_SUPERBLOCK:
                gain = gain + superblock_step(h, sums, rules, tile, v, start, level, g, at_g, a, ha)
                refresh_errors(rules, tile, v, start, 0, width, level, ha)
            for first in range(0, width, rules.group):
                at = at_g + LANES * first
                for k in range(0, rules.group, 4):
                    four_products(h, tile.columns, start + first + k, 0, delta, 0, first, g, at + LANES * k)
                if rules.scaling != FIXED:
                    gain = gain + group_step(h, sums, rules, tile, v, start, first, level, g, at, ha)
                    refresh_errors(rules, tile, v, start, first, rules.group, level, delta)
                gain = gain + _descend(h, rules, tile, v, start, first, g, at, delta, a)
            add_to_loss(tile.loss, v, -gain)
