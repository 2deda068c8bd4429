"""A whole tensor in another type, as the writer would write it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.fit.tensor_errors import Floats, importances, restored_rows
from surgeon.imatrix.imatrix import Imatrix
from surgeon.machine import available_cores
from surgeon.model.model import Model
from surgeon.resolve.tensor_facts import TensorFacts

Blocks = NDArray[np.uint8]
_SLAB = 1 << 21  # weights that one thread restores at a time


@dataclass(frozen=True)
class Encoder:
    """name: goes into the keys of what is cached; quantize: (rows float32[r, c], type, importances) -> blocks."""

    name: str
    quantize: Callable[[Floats, str, Floats | None], Blocks]


def _stock(rows: Floats, type_name: str, weights: Floats | None) -> Blocks:
    return surgeon_kernels.quantize(rows, type_name, weights)


STOCK = Encoder("stock", _stock)


def encoded(
    model: Model, facts: TensorFacts, type_name: str, imatrix: Imatrix | None, encoder: Encoder = STOCK
) -> Blocks:
    """uint8[rows, row_bytes]: all rows of the tensor in another type. Raises SurgeonError."""
    weights = importances(facts, imatrix)
    per_matrix = facts.rows // facts.matrices
    step = max(1, _SLAB // facts.columns)
    slabs = [
        (matrix, slice(start, min(start + step, (matrix + 1) * per_matrix)))
        for matrix in range(facts.matrices)
        for start in range(matrix * per_matrix, (matrix + 1) * per_matrix, step)
    ]

    def one(slab: tuple[int, slice]) -> Blocks:
        matrix, rows = slab
        try:
            return encoder.quantize(
                restored_rows(model, facts, rows), type_name, None if weights is None else weights[matrix]
            )
        except ValueError as error:
            raise SurgeonError(f"{model.file.path}: {facts.name}: cannot become {type_name}: {error}") from None

    with ThreadPoolExecutor(available_cores()) as pool:
        return np.concatenate(list(pool.map(one, slabs)))
