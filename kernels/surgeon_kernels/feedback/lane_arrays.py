"""Arrays of a tile from and to rows: sixteen rows to a vector, the last filled up with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..lanes.arithmetic import LANES
from .factors import Floats
from .tiles import to_lanes


def vectors_of(rows: int) -> int:
    """How many vectors hold so many rows."""
    return -(-rows // LANES)


def in_lanes(rows: Floats) -> Floats:
    """float32[rows, columns], columns a multiple of 16, as an array of a tile."""
    vectors, columns = vectors_of(len(rows)), rows.shape[1]
    padded = np.zeros((LANES * vectors, columns), np.float32)
    padded[: len(rows)] = rows
    out = np.empty(padded.size, np.float32)
    to_lanes(padded.reshape(-1), columns, vectors, out)
    return out


def small_in_lanes(values: NDArray[Any]) -> Any:
    """[rows, columns] of few columns, any number, likewise."""
    vectors = vectors_of(len(values))
    padded = np.zeros((LANES * vectors, values.shape[1]), values.dtype)
    padded[: len(values)] = values
    return np.ascontiguousarray(padded.reshape(vectors, LANES, -1).swapaxes(1, 2)).reshape(-1)


def rows_of(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """An array of a tile as [rows, columns]."""
    vectors = vectors_of(rows)
    return values.reshape(vectors, -1, LANES).swapaxes(1, 2).reshape(LANES * vectors, -1)[:rows]
