"""A tile of rows through the kernels of its type: codes of their own for each weight, or points of a codebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compilation import Kernel
from ..lanes.arithmetic import LANES
from . import CODES
from .cholesky import factor_tile
from .codebooks import squares
from .factors import FeedbackPart, Floats, SweepForm
from .lane_arrays import in_lanes, rows_of, small_in_lanes, vectors_of
from .layouts import LAYOUTS, Bytes, Layout, Scales
from .point_layouts import POINT_LAYOUTS, PointLayout
from .points import PointTile, add_point_losses, improve_points, sweep_points
from .products import PANEL
from .rounds import improve
from .sweep import add_losses, sweep
from .tiles import Tile, to_lanes

Losses = NDArray[np.float64]
Pause = Callable[[], None]
RUN = 4 * PANEL  # columns of a round between two pauses
_NO_SUMS = np.zeros(0, np.float32)
_SHARED: list[Kernel] = [factor_tile, to_lanes]
KERNELS: dict[bool, list[Kernel]] = {
    True: [*_SHARED, sweep, add_losses, improve],
    False: [*_SHARED, sweep_points, add_point_losses, improve_points],
}
"""By whether the type has a code for each weight."""


def kernels_of(kernel_set: str) -> list[Kernel]:
    """The kernels of a set of `kernel_set`, for `warm`."""
    return KERNELS[kernel_set == CODES]


def encode_tile(
    rows: Floats, stock: Bytes, name: str, part: FeedbackPart, rounds: int, pause: Pause = lambda: None
) -> tuple[Bytes, Losses]:
    """Blocks of up to ROWS rows on the grid of the stock blocks, and each row's loss, float64[rows].

    rows: float32[rows, columns of the part]; stock: uint8[rows, row bytes]. pause: called between parts of the work.
    """
    if name in LAYOUTS:
        return _codes(rows, stock, LAYOUTS[name], part, rounds, pause)
    return _points(rows, stock, POINT_LAYOUTS[name], part, rounds, pause)


def losses_up_to(errors: Floats, name: str, part: FeedbackPart, enough: Losses) -> Losses:
    """e H e' of each row of errors float32[rows, columns], or more than `enough` where it is more than that."""
    count, columns = errors.shape
    vectors = vectors_of(count)
    limits, found = np.full(LANES * vectors, -1.0), np.zeros(LANES * vectors)
    limits[:count] = enough
    lanes, form = in_lanes(errors), _form(name, part)
    if name in LAYOUTS:
        add_losses(form.a, form.d, form.order, columns, vectors, lanes, limits, found)
    else:
        size = POINT_LAYOUTS[name].book().vector
        add_point_losses(form.a, form.d.reshape(-1), form.order, columns, vectors, size, lanes, limits, found)
    return found[:count]


def _form(name: str, part: FeedbackPart) -> SweepForm:
    return part.form(1 if name in LAYOUTS else POINT_LAYOUTS[name].book().vector)


def _blocks(stock: Bytes, layout: Any) -> Bytes:
    return np.ascontiguousarray(stock).reshape(len(stock), -1, layout.block_bytes)


def _in_lanes(scales: Scales) -> tuple[Floats, Floats, Floats, Floats]:
    small = small_in_lanes
    return small(scales.d), small(scales.dmin), small(scales.scales), small(scales.minima)


def _scales_of(tile: Any, rows: int) -> Scales:
    return Scales(*(rows_of(array, rows) for array in (tile.d, tile.dmin, tile.scales, tile.minima)))


def _runs(columns: int, rounds: int, pause: Pause) -> Iterator[tuple[int, int]]:
    """The columns of each round in runs of some panels."""
    for _ in range(rounds):
        for begin in range(0, columns, RUN):
            pause()
            yield begin, min(begin + RUN, columns)


def _codes(
    rows: Floats, stock: Bytes, layout: Layout, part: FeedbackPart, rounds: int, pause: Pause
) -> tuple[Bytes, Losses]:
    count, columns = rows.shape
    vectors, weights = vectors_of(count), in_lanes(rows)
    errors, codes, loss = np.empty_like(weights), np.empty(weights.size, np.uint8), np.empty(LANES * vectors)
    scales = _in_lanes(layout.read(_blocks(stock, layout)))
    tile = Tile(columns, vectors, weights, errors, codes, *scales, loss)
    form, rules = part.form(), layout.rules()
    sweep(form.a, form.d, form.order, rules, tile)
    sums = part.group_sums(layout.group) if rounds and layout.minima else _NO_SUMS
    for begin, end in _runs(columns, rounds, pause):
        improve(part.h, sums, rules, tile, begin, end)
    return layout.pack(rows_of(codes, count), _scales_of(tile, count)), loss[:count]


def _points(
    rows: Floats, stock: Bytes, layout: PointLayout, part: FeedbackPart, rounds: int, pause: Pause
) -> tuple[Bytes, Losses]:
    count, columns = rows.shape
    vectors, weights, book = vectors_of(count), in_lanes(rows), layout.book()
    errors, levels, loss = np.empty_like(weights), np.empty_like(weights), np.empty(LANES * vectors)
    numbers = np.empty(weights.size // book.length, np.int32)
    blocks = _blocks(stock, layout)
    bits = small_in_lanes(layout.deltas(blocks))
    tile = PointTile(columns, vectors, weights, errors, levels, numbers, bits, *_in_lanes(layout.read(blocks)), loss)
    form, rules = part.form(book.vector), layout.rules()
    own = part.kept(("squares of D", book.signs), lambda: squares(book, form.d))
    sweep_points(form.a, form.d.reshape(-1), form.order, own, rules, book, tile)
    if rounds:
        inverses = part.block_inverses(book.vector)
        own = part.kept(("squares of H", book.signs), lambda: squares(book, part.diagonal_blocks(book.vector)))
        for begin, end in _runs(columns, rounds, pause):
            improve_points(part.h, inverses, own, rules, book, tile, begin, end)
    return layout.pack(rows_of(numbers, count), rows_of(tile.bits, count), _scales_of(tile, count)), loss[:count]
