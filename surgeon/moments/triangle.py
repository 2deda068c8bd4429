"""A symmetric matrix of sums Σ x xᵀ as it is stored: its diagonal in float32 and its correlations in float16.

The correlation of columns i < j is H_ij / sqrt(H_ii H_jj), in [-1, 1] whatever the model's scales are, so that
float16 errs by at most 2.4e-4 everywhere, far less than the 1 % of the mean diagonal that the encoder adds. Rows of the
upper triangle lie back to back; of wide inputs only square blocks along the diagonal may be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
_TILE = 256  # columns mirrored at once: both tiles stay in the nearest caches


def spans_of(columns: int, block: int) -> list[tuple[int, int]]:
    """The diagonal blocks as (start, stop); block 0: one of all columns."""
    step = block or columns
    return [(start, min(start + step, columns)) for start in range(0, columns, step)]


def packed_length(columns: int, block: int) -> int:
    """Correlations stored for one matrix."""
    return sum((stop - start) * (stop - start - 1) // 2 for start, stop in spans_of(columns, block))


def pack(blocks: Sequence[Float32]) -> tuple[Float32, Float16]:
    """Diagonal float32[columns] and correlations of square blocks, of which only the upper triangles are read.

    A column that never was anything but zero has the correlation 0 with all others.
    """
    diagonal = np.concatenate([np.diagonal(block) for block in blocks]).astype(np.float32)
    out = np.empty(sum(len(block) * (len(block) - 1) // 2 for block in blocks), np.float16)
    start = at = 0
    for block in blocks:
        n = len(block)
        root = np.sqrt(diagonal[start : start + n])
        scale = np.divide(np.float32(1), root, out=np.zeros_like(root), where=root > 0)
        for row in range(n - 1):
            values = block[row, row + 1 :] * scale[row + 1 :] * scale[row]
            out[at : at + n - 1 - row] = np.clip(values, -1, 1)
            at += n - 1 - row
        start += n
    return diagonal, out


def unpack(diagonal: Float32, correlations: Float16, block: int) -> list[Float32]:
    """The symmetric blocks again, float32[n, n] each."""
    found, at = [], 0
    for start, stop in spans_of(len(diagonal), block):
        n = stop - start
        root = np.sqrt(diagonal[start:stop])
        square = np.empty((n, n), np.float32)
        for row in range(n - 1):
            stored = correlations[at : at + n - 1 - row].astype(np.float32)
            np.multiply(stored, root[row + 1 :] * root[row], out=square[row, row + 1 :])
            at += n - 1 - row
        np.fill_diagonal(square, diagonal[start:stop])
        mirror(square)
        found.append(square)
    return found


def mirror(square: Float32) -> None:
    """Copy the upper triangle into the lower one."""
    n = len(square)
    for row in range(0, n, _TILE):
        rows = slice(row, min(row + _TILE, n))
        corner = square[rows, rows]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        for column in range(row + _TILE, n, _TILE):
            columns = slice(column, min(column + _TILE, n))
            square[columns, rows] = square[rows, columns].T
