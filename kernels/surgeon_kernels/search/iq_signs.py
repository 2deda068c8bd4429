"""Signs of the IQ2 and IQ3 formats: one byte for 8 weights, or 7 bits where the parity gives the eighth.

Seven bits hold the signs of 8 weights if an even number of them is negative. Where it is odd, the sign that costs least
is changed: the search then sees one negative size. Restoring, bit 7 is the exclusive or of the other seven.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compilation import helper
from ..dialect import F, Lanes
from ..lanes.arithmetic import absolute, int_splat, select

# All eight sign bits for each seven stored ones.
EVEN_SIGNS = np.array([s | (s.bit_count() & 1) << 7 for s in range(128)], np.int64)


@helper
def split_signs(x: Lanes, group: int, signs: Lanes) -> None:
    """Leave sizes in `x`; signs[k] gets the sign bits of its elements 8k ... 8k + 7."""
    for k in range(group // 8):
        byte = int_splat(0)
        for i in range(8):
            byte = byte | select(x[8 * k + i] < F(0), int_splat(1 << i), int_splat(0))
            x[8 * k + i] = absolute(x[8 * k + i])
        signs[k] = byte


@helper
def make_signs_even(x: Lanes, w: Lanes, group: int, signs: Lanes) -> None:
    """Change one sign in every 8 weights with an odd number of negative ones, and keep the lowest seven bits."""
    for k in range(group // 8):
        least = w[8 * k] * x[8 * k] * x[8 * k]
        cheapest = int_splat(0)
        ones = signs[k] & 1
        for i in range(1, 8):
            cost = w[8 * k + i] * x[8 * k + i] * x[8 * k + i]
            cheapest = select(cost < least, int_splat(i), cheapest)
            least = select(cost < least, cost, least)
            ones = ones ^ signs[k] >> i & 1
        cheapest = select(ones == 1, cheapest, int_splat(8))
        for i in range(8):
            x[8 * k + i] = select(cheapest == i, -x[8 * k + i], x[8 * k + i])
        signs[k] = (signs[k] ^ int_splat(1) << cheapest) & 127


@helper
def flip_signs(scale: Lanes, group: int, signs: Lanes, all_bits: int) -> Lanes:
    """|scale|, with all signs changed where it was negative; `all_bits` is 127 or 255."""
    for k in range(group // 8):
        signs[k] = select(scale < F(0), ~signs[k] & all_bits, signs[k])
    return absolute(scale)


@helper
def largest_of(x: Lanes, group: int) -> Lanes:
    """Per lane the largest (signed) value of its group."""
    largest = x[0]
    for j in range(1, group):
        largest = select(largest > x[j], largest, x[j])
    return largest


@helper
def even_signs(word: int, shift: int) -> Any:
    """Sixteen sign bits from the fourteen that begin at bit `shift` of `word`."""
    return EVEN_SIGNS[word >> shift & 127] | EVEN_SIGNS[word >> shift + 7 & 127] << 8
