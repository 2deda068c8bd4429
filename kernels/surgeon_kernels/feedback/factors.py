"""What the encoder needs of the second moments of an input, once for all matrices that read it.

H is shrunk towards its diagonal and damped:

    H_b = (1 - b) H + b diag(H) + damping * mean(diag H) * I

Without shrinkage (b = 0) the errors are fitted to the calibration text, and texts of another kind lose by it; b = 1 is
what stock quantizers assume, columns without correlation. With the columns in order (descending diagonal) and P the
reversed matrix, P = L L', the factor of the sweep is L reversed: H_b = U U', D = diag(U)**2, A = U / diag(U) - I.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cholesky import SIZE, Elsewhere, factor_columns
from .products import BLOCK, DEPTH, PANEL, PANEL_STRIPS, PANEL_WIDTH, STRIP, strip_place

Floats = NDArray[np.float32]
Moments = NDArray[Any] | Sequence[NDArray[Any]]
"""H = E[x x'], float[m, m]; or its square blocks along the diagonal where only those are known."""

_ATTEMPTS = 6  # the damping grows tenfold each time


@dataclass(frozen=True, slots=True)
class SweepForm:
    """The factor for one length of vectors: (I + A) D (I + A)', block diagonal D and block upper A.

    order: int64[m]; a: A in strips (products.py); d: float32[m] for single columns, else float32[m / v, v, v].
    """

    order: NDArray[np.int64]
    a: Floats
    d: Floats


@dataclass(frozen=True, slots=True)
class FeedbackPart:
    """One diagonal block of H: columns `start` to `stop`. h: shrunk and damped, in strips (products.py); elsewhere:
    where its factor is made, None for this processor.
    """

    start: int
    stop: int
    h: Floats
    elsewhere: Elsewhere | None = field(default=None, repr=False)
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.RLock, repr=False)

    @property
    def columns(self) -> int:
        return self.stop - self.start

    def rows(self, chosen: NDArray[np.int64]) -> Floats:
        """Rows of H: float32[chosen, columns]."""
        top = chosen // DEPTH * DEPTH
        counts = np.minimum(DEPTH, self.columns - top)
        first = PANEL_STRIPS * top + chosen - top
        places = first[:, None] + counts[:, None] * np.arange(PANEL_STRIPS)
        panels = self.h.reshape(-1, self.columns * PANEL_STRIPS, STRIP)
        found = np.empty((len(chosen), len(panels), PANEL), np.float32)
        for panel, strips in enumerate(panels):
            found[:, panel] = strips[places].reshape(len(chosen), PANEL_WIDTH)[:, :PANEL]
        return found.reshape(len(chosen), -1)[:, : self.columns]

    def diagonal(self) -> Floats:
        """float32[columns]"""
        found = [
            self.rows(np.arange(k, min(k + PANEL, self.columns))).diagonal(k) for k in range(0, self.columns, PANEL)
        ]
        return np.concatenate(found)

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for a key."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def form(self, vector: int = 1) -> SweepForm:
        """The factor for vectors of this many columns. Raises ValueError where H is not positive."""
        form: SweepForm = self.kept(("form", vector), lambda: _sweep_form(self, vector))
        return form

    def diagonal_blocks(self, vector: int) -> Floats:
        """float32[columns / v, v, v]"""
        return np.stack([self.rows(own)[:, own] for own in np.arange(self.columns).reshape(-1, vector)])

    def block_inverses(self, vector: int) -> Floats:
        """Inverses of the diagonal blocks of H, of so many columns: float32[columns / v, v, v], flat."""

        def inverses() -> Floats:
            return np.linalg.inv(self.diagonal_blocks(vector).astype(np.float64)).astype(np.float32).reshape(-1)

        found: Floats = self.kept(("inverses", vector), inverses)
        return found

    def group_sums(self, group: int) -> Floats:
        """H summed over the columns of each group of a panel: float32[columns, PANEL / group], flat."""
        found: Floats = self.kept(("sums", group), lambda: self._group_sums(group))
        return found

    def _group_sums(self, group: int) -> Floats:
        sums = np.zeros((self.columns, PANEL // group), np.float32)
        for first in range(0, self.columns, PANEL):
            rows = self.rows(np.arange(first, min(first + PANEL, self.columns)))
            found = rows[:, first : first + PANEL].reshape(len(rows), -1, group).sum(2, dtype=np.float64)
            sums[first : first + PANEL, : found.shape[1]] = found
        return sums.reshape(-1)


@dataclass(frozen=True, slots=True)
class FeedbackFactor:
    """Second moments made ready for the encoder; shared by threads, and by all matrices with the same input.

    columns: m; diagonal: float32[m], that of H before it was damped: the importance matrix of the input; parts: the
    diagonal blocks of H, mostly one.
    """

    columns: int
    shrink: float
    damping: float
    diagonal: Floats
    parts: tuple[FeedbackPart, ...]

    def matrix(self) -> Floats:
        """H as it is used, shrunk and damped: float32[m, m]."""
        whole = np.zeros((self.columns, self.columns), np.float32)
        for part in self.parts:
            whole[part.start : part.stop, part.start : part.stop] = part.rows(np.arange(part.columns))
        return whole


def factor(
    moments: Moments,
    *,
    shrink: float = 0.5,
    damping: float = 0.01,
    block: int = 1,
    elsewhere: Elsewhere | None = None,
) -> FeedbackFactor:
    """Shrink, damp and factor second moments.

    moments: H = E[x x'] of the input, symmetric float[m, m], or a sequence of its square diagonal blocks, each a
    multiple of 32 wide. shrink: b, 0 ... 1. damping: tenfold until the factor exists. block: length of the vectors that
    are to be rounded at once, 1, 4 or 8; other lengths are made when first needed. elsewhere: makes the Cholesky factor
    on another device (cholesky.py).
    Raises ValueError for other shapes, for values that are not finite and for a negative diagonal.
    """
    blocks = moment_blocks(moments)
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink must be from 0 to 1, not {shrink}")
    for found in blocks:
        _check(found)
    starts = np.cumsum([0, *(len(found) for found in blocks)])
    diagonal = np.concatenate([np.diagonal(found).astype(np.float32) for found in blocks])
    for attempt in range(_ATTEMPTS):
        used = damping if attempt == 0 else max(damping, 1e-4) * 10.0**attempt
        parts = tuple(
            _part(found, int(start), shrink, used, elsewhere) for found, start in zip(blocks, starts, strict=False)
        )
        try:
            for part in parts:
                part.form(block)
        except ValueError:
            if attempt + 1 == _ATTEMPTS:
                raise
            continue
        break
    return FeedbackFactor(int(starts[-1]), shrink, used, diagonal, parts)


def moment_blocks(moments: Moments) -> list[NDArray[Any]]:
    """The diagonal blocks of H, mostly one."""
    return [moments] if isinstance(moments, np.ndarray) else list(moments)


def _check(moments: Any) -> None:
    if not isinstance(moments, np.ndarray) or moments.ndim != 2 or moments.shape[0] != moments.shape[1]:
        found = f"{moments.dtype}{list(moments.shape)}" if isinstance(moments, np.ndarray) else type(moments).__name__
        raise ValueError(f"second moments must be float[columns, columns], not {found}")
    if not len(moments) or len(moments) % 32:
        raise ValueError(f"second moments of {len(moments)} columns: only multiples of 32 can be factored")
    if not (np.isfinite(moments).all() and (np.diagonal(moments) >= 0).all()):
        raise ValueError("second moments must be finite, with a diagonal that is not negative")


def _part(
    moments: NDArray[Any], start: int, shrink: float, damping: float, elsewhere: Elsewhere | None
) -> FeedbackPart:
    columns = len(moments)
    diagonal = np.diagonal(moments).astype(np.float64)
    mean = diagonal.mean()
    strips, at = np.empty(-(-columns // PANEL) * PANEL_WIDTH * columns, np.float32), 0
    for first in range(0, columns, PANEL):
        width = min(PANEL, columns - first)
        scaled = np.zeros((columns, PANEL_WIDTH), np.float32)
        scaled[:, :width] = moments[:, first : first + width].astype(np.float64) * (1.0 - shrink)
        own = np.arange(first, first + width)
        scaled[own, own - first] = diagonal[own] + (damping * mean if mean > 0 else 1.0)
        for top in range(0, columns, DEPTH):
            rows = scaled[top : top + DEPTH]
            strips[at : at + rows.size] = rows.reshape(len(rows), -1, STRIP).swapaxes(0, 1).reshape(-1)
            at += rows.size
    return FeedbackPart(start, start + columns, strips, elsewhere)


def _sweep_form(part: FeedbackPart, vector: int) -> SweepForm:
    columns = part.columns
    order = _descending(part.diagonal(), vector)
    reverse = order[::-1]

    def rows_of(first: int) -> NDArray[np.float64]:
        chosen = reverse[first : first + SIZE]
        rows = np.eye(SIZE, first + SIZE, first)
        rows[: len(chosen), : first + len(chosen)] = part.rows(chosen)[:, reverse[: first + SIZE]]
        return rows

    tiles = factor_columns(columns, rows_of, part.elsewhere)
    if tiles is None:
        raise ValueError("second moments are not positive definite")
    return SweepForm(order, *(_single if vector == 1 else _blocked)(tiles, columns, vector))


def _descending(diagonal: Floats, vector: int) -> NDArray[np.int64]:
    """Columns by descending diagonal, or vectors of columns by the sum of theirs."""
    sums = diagonal.reshape(-1, vector).sum(1, dtype=np.float64)
    first = np.argsort(-sums, kind="stable") * vector
    return (first[:, None] + np.arange(vector)).reshape(-1)


def _put_column(a: Floats, columns: int, column: int, values: NDArray[np.float64]) -> None:
    """Rows 0 ... of a column of the triangular factor, to where products.py wants them."""
    block, strip, place = column // BLOCK, column % BLOCK // STRIP, column % STRIP
    before = BLOCK * block
    strips = min(BLOCK, -(-columns // STRIP) * STRIP - before) // STRIP
    for top in [*range(0, min(before, len(values)), DEPTH), before]:
        part = values[top : min(top + DEPTH, before) if top < before else None]
        start = strip_place(block, strips, strip, top) + place
        a[start : start + STRIP * len(part) : STRIP] = part


def _room(columns: int) -> Floats:
    """For the triangular factor in strips."""
    padded = -(-columns // STRIP) * STRIP
    block, strips = padded // BLOCK, padded % BLOCK // STRIP
    return np.zeros(strip_place(block, strips, strips, BLOCK * block), np.float32)


def _single(tiles: list[Any], columns: int, vector: int) -> tuple[Floats, Floats]:
    """A in strips, and D; frees the tiles on the way."""
    a, d = _room(columns), np.empty(columns, np.float32)
    for tile in range(len(tiles)):
        lower, tiles[tile] = tiles[tile].reshape(-1, SIZE), None
        for place in range(min(SIZE, columns - SIZE * tile)):
            column = columns - 1 - SIZE * tile - place
            pivot = lower[place, place]
            _put_column(a, columns, column, lower[place + 1 : place + 1 + column, place][::-1] / pivot)
            d[column] = pivot * pivot
    return a, d


def _blocked(tiles: list[Any], columns: int, vector: int) -> tuple[Floats, Floats]:
    """A, block upper triangular, in strips, and the blocks of D."""
    a, d = _room(columns), np.empty((columns // vector, vector, vector), np.float32)
    for tile in range(len(tiles)):
        lower, tiles[tile] = tiles[tile].reshape(-1, SIZE), None
        for place in range(0, min(SIZE, columns - SIZE * tile), vector):
            column = columns - SIZE * tile - place - vector  # the first of the vector
            own = lower[place : place + vector, place : place + vector][::-1, ::-1]
            above = lower[place + vector : place + vector + column, place : place + vector][::-1, ::-1]
            d[column // vector] = own @ own.T
            scaled = np.empty((column, vector))
            for j in range(vector):  # scaled @ own = above
                rest = above[:, j] - sum(scaled[:, i] * own[i, j] for i in range(j))
                scaled[:, j] = rest / own[j, j]
                _put_column(a, columns, column + j, scaled[:, j])
    return a, d
