"""The public functions: rows to blocks under second moments, and what blocks lose under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import interface
from ..formats import FORMATS
from ..lanes.arithmetic import LANES
from . import feedback_types
from .encodings import Pause, encode_tile, losses_up_to
from .factors import FeedbackFactor, FeedbackPart, Floats, Moments, moment_blocks
from .products import ROWS

Bytes = NDArray[np.uint8]

_SWEEP_WORK = 1.6e10  # rows * columns**2 of a tile at most: about a fifth of a second
_MARGIN = 1.0 - 1e-5  # of a loss, what float32 sums may be off: within it the stock row stays


class FeedbackStopped(Exception):  # noqa: N818 - no error: it was asked for
    """Encoding was stopped, as `stop` said; `out` is partly written."""


def quantize_with_feedback(
    rows: Floats,
    qtype: Any,
    factor: FeedbackFactor,
    *,
    weights: Floats | None = None,
    rounds: int = 1,
    stop: Callable[[], bool] | None = None,
) -> Bytes:
    """Quantize float32[r, m] to uint8[r, row bytes] so that e H e' is small, e a row's error and H that of `factor`.

    weights: importance matrix float32[m] of the stock search that fixes the grid; the diagonal of the moments where it
    is None. rounds: how often scales and codes are improved after the sweep; each takes about twice a sweep's time.
    stop: asked every tenth of a second or so; FeedbackStopped is raised when it says yes.
    A row that would lose more than the stock row, e H e', is the stock row. Bytes do not depend on how rows are cut
    into calls, nor on threads; they may differ between processors. Rows are taken 192 at a time, fewer of wide ones;
    with fewer in a call H is read from memory more often.
    Raises ValueError as `quantize` does, for types that are not in `feedback_types`, for a factor of another width, and
    for a diagonal block of it that is not a whole number of the type's blocks.
    """
    format_ = interface.format_of(qtype)
    checked = interface.check_rows(rows)
    out = np.empty((checked.shape[0], format_.row_bytes(checked.shape[1])), np.uint8)
    quantize_with_feedback_into(checked, qtype, factor, out, weights=weights, rounds=rounds, stop=stop)
    return out


def quantize_with_feedback_into(
    rows: Floats,
    qtype: Any,
    factor: FeedbackFactor,
    out: Bytes,
    *,
    weights: Floats | None = None,
    rounds: int = 1,
    stop: Callable[[], bool] | None = None,
) -> None:
    """As `quantize_with_feedback`, into C-contiguous uint8[r, row bytes]."""
    name = _check_type(qtype, factor)
    if rounds < 0:
        raise ValueError(f"rounds must not be negative, not {rounds}")
    rows = interface.check_rows(rows)
    if rows.shape[1] != factor.columns:
        raise ValueError(f"the second moments are of {factor.columns} columns, the rows have {rows.shape[1]}")
    interface.quantize_into(rows, name, out, factor.diagonal if weights is None else weights)
    format_ = FORMATS[name]

    def pause() -> None:
        if stop is not None and stop():
            raise FeedbackStopped

    count = min(ROWS, max(LANES, int(_SWEEP_WORK / factor.columns**2) // LANES * LANES))
    for start in range(0, len(rows), count):
        tile = slice(start, min(start + count, len(rows)))
        for part in factor.parts:
            columns = slice(part.start, part.stop)
            place = slice(format_.row_bytes(part.start), format_.row_bytes(part.stop))
            out[tile, place] = _encode(rows[tile, columns], out[tile, place], name, part, rounds, pause)


def feedback_error(rows: Floats, blocks: Bytes, qtype: Any, moments: Moments) -> NDArray[np.float64]:
    """e H e' of each row, float64[r]: rows float32[r, m], their blocks uint8[r, row bytes], H float[m, m].

    moments: H, or its square blocks along the diagonal. Raises ValueError for shapes that do not belong together.
    """
    restored = interface.dequantize(blocks, qtype)
    parts = moment_blocks(moments)
    columns = sum(len(part) for part in parts)
    if rows.shape != restored.shape or rows.shape[1] != columns:
        raise ValueError(
            f"rows {list(rows.shape)}, restored {list(restored.shape)} and moments of {columns} columns do not match"
        )
    errors, found, start = rows - restored, np.zeros(len(rows)), 0
    for part in parts:
        own = errors[:, start : start + len(part)]
        found += np.einsum("rm,rm->r", own @ part, own, dtype=np.float64)
        start += len(part)
    return found


def _check_type(qtype: Any, factor: FeedbackFactor) -> str:
    format_ = interface.format_of(qtype)
    if format_.name not in feedback_types:
        raise ValueError(
            f"{format_.name} has no feedback encoder; those with one are {' '.join(sorted(feedback_types))}"
        )
    for part in factor.parts:
        if part.columns % format_.block:
            raise ValueError(
                f"second moments in blocks of {part.columns} columns do not fit {format_.name}: its blocks have "
                f"{format_.block}"
            )
    return format_.name


def _encode(rows: Floats, stock: Bytes, name: str, part: FeedbackPart, rounds: int, pause: Pause) -> Bytes:
    """Blocks of up to ROWS rows within one diagonal block of H: for each row the stock search's, or better ones."""
    pause()
    made, loss = encode_tile(rows, stock, name, part, rounds, pause)
    pause()
    errors = rows - interface.dequantize(np.ascontiguousarray(stock), name)
    enough = loss / _MARGIN
    better = losses_up_to(errors, name, part, enough) > enough  # where either is NaN, the stock row stays
    made[~better] = stock[~better]
    return made
