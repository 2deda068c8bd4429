"""What the superblocks of the IQ2 and IQ3 formats share around the search: work space, 4-bit scales, unset groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compilation import helper
from ..dialect import Array, F, Lanes
from ..lanes.arithmetic import (
    LANES,
    int_splat,
    lane_numbers,
    largest,
    maximum,
    minimum,
    nearest_int,
    select,
    splat,
    store_i32,
)


class Chosen(NamedTuple):
    """The result of a tile in memory: item k of lane l at 16k + l.

    points: int32[8 * 16], point numbers; signs: int32[4 * 16], sign bytes; codes: int32[16], scale codes.
    """

    points: Array
    signs: Array
    codes: Array


@helper
def chosen_space() -> Chosen:
    return Chosen(np.zeros(8 * LANES, np.int32), np.zeros(4 * LANES, np.int32), np.zeros(LANES, np.int32))


@helper
def keep_chosen(chosen: Chosen, parts: int, points: Lanes, signs: Lanes, active: Lanes, group: int) -> None:
    """Copy points and signs to memory; those of a group of zeros are 0."""
    for part in range(parts):
        store_i32(chosen.points, LANES * part, points[part])
    for k in range(group // 8):
        store_i32(chosen.signs, LANES * k, select(active, signs[k], int_splat(0)))


@helper
def keep_codes(chosen: Chosen, scale: Lanes, group: int, highest: int) -> Lanes:
    """Per lane the unrounded d of its superblock; the codes of the scales, 0 ... `highest`, go to memory.

    A scale is restored as d * (2 * code + 1); the largest one gets the highest code.
    """
    if group == 16:
        top = splat(largest(scale))
    else:
        in_first = lane_numbers() < 8
        low = largest(select(in_first, scale, splat(F(0))))
        high = largest(select(in_first, splat(F(0)), scale))
        top = select(in_first, splat(low), splat(high))
    d = top / F(2 * highest + 1)
    code = nearest_int(F(0.5) * (F(1) / d * scale - F(1)))
    store_i32(chosen.codes, 0, maximum(int_splat(0), minimum(int_splat(highest), code)))
    return d


@helper
def put_signs_and_scale(out: Array, at: int, chosen: Chosen, lane: int) -> None:
    """Write four times seven sign bits and the scale code of one group as a little-endian 32-bit number."""
    word = np.int64(chosen.codes[lane]) << 28
    for k in range(4):
        word |= np.int64(chosen.signs[LANES * k + lane]) << 7 * k
    for byte in range(4):
        out[at + byte] = word >> 8 * byte & 255
