"""Squared error of restored weights, per row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from .compilation import kernel

_READ = types.Array(types.float32, 1, "C", readonly=True)
_WRITE = types.Array(types.float64, 1, "C")


@kernel(types.void(_READ, _READ, _READ, _WRITE, _WRITE))
def sum_errors(values: Any, restored: Any, weights: Any, squared: Any, weighted: Any) -> None:
    """Per row the sums, in float64, of the squared difference and of weight times it (float32[0]: no weights)."""
    columns = len(values) // len(squared)
    for row in range(len(squared)):
        plain, heavy = 0.0, 0.0
        for i in range(columns):
            at = row * columns + i
            difference = np.float64(values[at]) - np.float64(restored[at])
            square = difference * difference
            plain += square
            if len(weights) > 0:
                heavy += np.float64(weights[i]) * square
        squared[row] = plain
        weighted[row] = heavy if len(weights) > 0 else plain
