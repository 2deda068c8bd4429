"""A Cholesky factor in float64, in place, in square tiles: half the memory of a full matrix, the same bits always.

BLAS divides large products between threads, and how it does changes their last bits. Products of two 64 x 64 tiles are
left whole by it (OpenBLAS: up to 2**18 multiplications), so the factor does not depend on how many threads it may use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from ..compilation import kernel

SIZE = 64
Tiles = NDArray[np.float64]
Elsewhere = Callable[[Tiles], Callable[[int], Tiles] | None]
"""Factors symmetric float64[n, n], of which the lower triangle is there, on another device. Gives None where it is not
positive definite, else a function: of a column j the 64 columns of the factor from it on, from row j down."""
_TILE = types.Array(types.float64, 2, "C")


@kernel(types.boolean(_TILE, _TILE))
def factor_tile(tile: Any, inverse: Any) -> bool:
    """Lower factor of a symmetric tile, in its place, and the inverse of that; False where it is not positive."""
    n = len(tile)
    for k in range(n):
        pivot = tile[k, k]
        for j in range(k):
            pivot -= tile[k, j] * tile[k, j]
        if not (pivot > 0.0 and np.isfinite(pivot)):
            return False
        tile[k, k] = np.sqrt(pivot)
        for i in range(k + 1, n):
            total = tile[i, k]
            for j in range(k):
                total -= tile[i, j] * tile[k, j]
            tile[i, k] = total / tile[k, k]
            tile[k, i] = 0.0
    for k in range(n):
        for i in range(n):
            total = 1.0 if i == k else 0.0
            for j in range(k, i):
                total -= tile[i, j] * inverse[j, k]
            inverse[i, k] = total / tile[i, i] if i >= k else 0.0
    return True


def factor_columns(
    columns: int, rows_of: Callable[[int], NDArray[np.float64]], elsewhere: Elsewhere | None = None
) -> list[Tiles] | None:
    """The lower factor L of a symmetric matrix of `columns`; None where it is not positive definite.

    rows_of(first): float64[64, first + 64], the matrix's rows from `first` on up to the diagonal tile; what lies beyond
    the matrix is that of the identity. Result: per column of tiles float64[tiles from the diagonal down, 64, 64].
    elsewhere: does the work; then the last bits are those of another device.
    """
    count = -(-columns // SIZE)
    if elsewhere is not None:
        return _factored(count, rows_of, elsewhere)
    tiles = [np.empty((count - j, SIZE, SIZE)) for j in range(count)]
    for i in range(count):
        rows = rows_of(SIZE * i)
        for j in range(i + 1):
            tiles[j][i - j] = rows[:, SIZE * j : SIZE * (j + 1)]
    inverse = np.empty((SIZE, SIZE))
    for j, column in enumerate(tiles):
        if not factor_tile(column[0], inverse):
            return None
        if len(column) > 1:
            column[1:] = np.matmul(column[1:], inverse.T)
        for k in range(1, len(column)):
            tiles[j + k] -= np.matmul(column[k:], column[k].T)
    return tiles


def _factored(count: int, rows_of: Callable[[int], NDArray[np.float64]], elsewhere: Elsewhere) -> list[Tiles] | None:
    matrix = np.zeros((count * SIZE, count * SIZE))
    for first in range(0, len(matrix), SIZE):
        matrix[first : first + SIZE, : first + SIZE] = rows_of(first)
    columns_of = elsewhere(matrix)
    del matrix
    if columns_of is None:
        return None
    return [np.array(columns_of(SIZE * j), np.float64).reshape(-1, SIZE, SIZE) for j in range(count)]
