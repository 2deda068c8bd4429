"""The relative error of a tensor in each type: what quantizing it loses of its output, before any model is run.

    e_t(q) = Σ_j m_j Σ_i (w_ij − w'_ij)² / Σ_j m_j Σ_i w_ij²

over rows i and columns j; m_j is the importance matrix, the mean square of the j-th input (1 without one). Rows are
independent, so that a large tensor is judged by evenly spaced rows of it. `feedback_errors` has the same of the
feedback encoder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.errors import Cancelled, SurgeonError
from surgeon.imatrix.imatrix import Imatrix
from surgeon.machine import available_cores
from surgeon.model.model import Model
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon_kernels.formats import FORMATS, USES_CODEBOOK

Floats = NDArray[np.float32]
Errors = dict[str, dict[str, float]]  # tensor -> type -> relative error

STOPPED = "the errors of the tensors were not finished; run it again to resume"
_SAMPLE, _CODEBOOK_SAMPLE = 1 << 21, 1 << 19  # weights of one tensor that are tried


def weighted_error(rows: Floats, type_name: str, weights: Floats | None) -> tuple[float, float]:
    """Σ m Δw² and Σ m w² of these rows, as the stock encoder leaves them."""
    lost = float(surgeon_kernels.quantization_error(rows, type_name, weights).weighted.sum())
    squares = np.square(rows, dtype=np.float64).sum(axis=0)
    return lost, float(squares.sum() if weights is None else squares @ weights)


def measure_errors(
    model: Model,
    wanted: Sequence[tuple[TensorFacts, Sequence[str]]],
    imatrix: Imatrix | None,
    cancelled: threading.Event,
) -> Iterator[tuple[str, dict[str, float]]]:
    """(tensor, type -> relative error) for every tensor and its types, in order, on all cores.

    Raises SurgeonError for a tensor that cannot be read or restored, Cancelled.
    """

    def one(item: tuple[TensorFacts, Sequence[str]]) -> tuple[str, dict[str, float]]:
        facts, types = item
        return facts.name, _errors(model, facts, types, imatrix, cancelled)

    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(one, wanted)


def importances(facts: TensorFacts, imatrix: Imatrix | None) -> Floats | None:
    """float32[matrices, columns], or None where the importance matrix has no entry for this tensor."""
    if imatrix is None or imatrix.sizes.get(facts.name) != facts.columns * facts.matrices:
        return None
    return imatrix.weights(facts.name).reshape(facts.matrices, facts.columns)


def restored_rows(model: Model, facts: TensorFacts, rows: slice | NDArray[np.intp]) -> Floats:
    """float32[r, columns] of some rows as they are now. Raises SurgeonError."""
    known = FORMATS[facts.from_type]
    blocks = model.file.data(facts.tensor.info).reshape(facts.rows, known.row_bytes(facts.columns))[rows]
    try:
        return surgeon_kernels.dequantize(np.ascontiguousarray(blocks), facts.from_type)
    except ValueError as error:
        raise SurgeonError(f"{model.file.path}: {facts.name}: {error}") from None


def _errors(
    model: Model,
    facts: TensorFacts,
    types: Sequence[str],
    imatrix: Imatrix | None,
    cancelled: threading.Event,
) -> dict[str, float]:
    weights = importances(facts, imatrix)
    found = {}
    for codebook, sample in ((False, _SAMPLE), (True, _CODEBOOK_SAMPLE)):
        chosen = [name for name in types if (name in USES_CODEBOOK) == codebook]
        parts = list(sampled(model, facts, sample)) if chosen else []
        for name in chosen:
            sums = np.zeros(2)
            for matrix, rows in parts:
                if cancelled.is_set():
                    raise Cancelled(STOPPED)
                sums += weighted_error(rows, name, None if weights is None else weights[matrix])
            found[name] = ratio(model, facts, sums)
    return found


def ratio(model: Model, facts: TensorFacts, sums: NDArray[np.float64]) -> float:
    """The relative error from what is lost and the whole. Raises SurgeonError where one is not finite."""
    if not np.isfinite(sums).all():
        raise SurgeonError(
            f"{model.file.path}: {facts.name}: a value or an importance is not finite; see `surgeon verify`"
        )
    return float(sums[0] / sums[1]) if sums[1] > 0 else 0.0


def sampled(model: Model, facts: TensorFacts, sample: int) -> Iterator[tuple[int, Floats]]:
    """(matrix, some of its rows) of every matrix, about `sample` weights in all."""
    for matrix in range(facts.matrices):
        yield matrix, sampled_rows(model, facts, matrix, sample)


def sampled_rows(model: Model, facts: TensorFacts, matrix: int, sample: int) -> Floats:
    """Rows of one matrix, evenly spaced; of all matrices about `sample` weights. Raises SurgeonError."""
    per_matrix = facts.rows // facts.matrices
    count = min(per_matrix, max(1, sample // (facts.columns * facts.matrices)))
    places = np.linspace(0, per_matrix - 1, count).round().astype(np.intp)
    return restored_rows(model, facts, matrix * per_matrix + places)
