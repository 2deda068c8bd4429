"""The relative error of a tensor in each type as the feedback encoder leaves it.

    e_t(q) = Σ_i e_i H e_iᵀ / Σ_j m_j Σ_i w_ij²          e_i: row i of w − w'

H are the second moments of the input, shrunk towards their diagonal m as the encoder sees them, but not damped. Where H
has no correlations that is the stock encoder's error (`tensor_errors`), which tensors without second moments, or with
too few tokens, have here too. One input after the other is factored, and all tensors and types that go by it are tried
on all cores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.errors import Cancelled, SurgeonError
from surgeon.fit.tensor_errors import STOPPED, Floats, importances, measure_errors, ratio, sampled_rows, weighted_error
from surgeon.imatrix.imatrix import Imatrix
from surgeon.machine import available_cores
from surgeon.model.model import Model
from surgeon.moments.moments import Input, Moments
from surgeon.moments.thresholds import FEWEST
from surgeon.resolve.feedback import FeedbackDecider
from surgeon.resolve.tensor_facts import TensorFacts

_SAMPLE = 1 << 18  # weights of one tensor that are tried
_LEAST_ROWS = 16
Wanted = Sequence[tuple[TensorFacts, Sequence[str]]]
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class FeedbackErrors:
    """measure(): as `tensor_errors.measure_errors`, by the second moments of the inputs.

    shrink: of second moments towards their diagonal; rounds: of better scales and codes.
    """

    model: Model
    moments: Moments
    imatrix: Imatrix | None
    shrink: float
    rounds: int
    cancelled: threading.Event

    def measure(self, wanted: Wanted) -> Iterator[tuple[str, dict[str, float]]]:
        """(tensor, type -> relative error), those of one input after each other.

        Raises SurgeonError for a tensor that cannot be read or encoded, Cancelled.
        """
        by_input: dict[str, list[tuple[TensorFacts, Sequence[str]]]] = {}
        stock: list[tuple[TensorFacts, Sequence[str]]] = []
        decider = FeedbackDecider(self.moments)
        for facts, types in wanted:
            with_feedback = {name: decider.decide(facts, name)[0] for name in types}
            inputs = {name for name in with_feedback.values() if name is not None}
            for name in inputs:
                by_input.setdefault(name, []).append((facts, types))
            if not inputs:
                stock.append((facts, types))
        with ThreadPoolExecutor(available_cores()) as pool:
            for name, users in by_input.items():
                yield from self._of_input(pool, self.moments.inputs[name], users)
        yield from measure_errors(self.model, stock, self._weighing(decider, stock), self.cancelled)

    def _of_input(self, pool: ThreadPoolExecutor, one: Input, users: Wanted) -> Iterator[tuple[str, dict[str, float]]]:
        """Matrix after matrix (of the experts), every user in every type."""
        pairs = [(facts, name) for facts, types in users for name in types]
        sums = {(facts.name, name): np.zeros(2) for facts, name in pairs}
        for matrix in range(one.matrices):
            work = self._matrix(one, matrix)
            for (facts, name), found in zip(pairs, pool.map(work.sums, pairs), strict=True):
                sums[facts.name, name] += found
        for facts, types in users:
            yield facts.name, {name: ratio(self.model, facts, sums[facts.name, name]) for name in types}

    def _matrix(self, one: Input, matrix: int) -> _OfMatrix:
        usable = self.moments.ratios[one.name][matrix] >= FEWEST
        blocks = self.moments.blocks(one, matrix) if usable else []
        factor = surgeon_kernels.factor(blocks, shrink=self.shrink) if usable else None
        return _OfMatrix(self, matrix, blocks, factor)

    def _weighing(self, decider: FeedbackDecider, stock: Wanted) -> Imatrix | None:
        """The imatrix, with token embeddings weighed as a write weighs them: by the input of the first layer."""
        found = next((facts for facts, _ in stock if facts.name == "token_embd.weight"), None)
        if self.imatrix is None or found is None or importances(found, self.imatrix) is not None:
            return self.imatrix
        entry = decider.embedding_weights(found.columns)
        if entry is None or self.imatrix.sizes.get(entry) != found.columns:
            return self.imatrix
        return replace(self.imatrix, entries={**self.imatrix.entries, found.name: self.imatrix.entries[entry]})


@dataclass(frozen=True)
class _OfMatrix:
    """One input's second moments (of one expert), made ready; without a factor too few tokens were seen."""

    errors: FeedbackErrors
    matrix: int
    blocks: Sequence[Floats]
    factor: surgeon_kernels.FeedbackFactor | None

    def sums(self, pair: tuple[TensorFacts, str]) -> Sums:
        """What a tensor in a type loses, and the whole: float64[2]."""
        if self.errors.cancelled.is_set():
            raise Cancelled(STOPPED)
        facts, type_name = pair
        sample = max(_SAMPLE, _LEAST_ROWS * facts.columns * facts.matrices)
        rows = sampled_rows(self.errors.model, facts, self.matrix, sample)
        weights = importances(facts, self.errors.imatrix)
        own = None if weights is None else weights[self.matrix]
        if self.factor is None or type_name not in surgeon_kernels.feedback_types:
            return np.array(weighted_error(rows, type_name, own))
        try:
            made = surgeon_kernels.quantize_with_feedback(
                rows, type_name, self.factor, weights=own, rounds=self.errors.rounds
            )
        except ValueError as error:
            where = f"{self.errors.model.file.path}: {facts.name}"
            raise SurgeonError(f"{where}: cannot become {type_name}: {error}") from None
        return self._lost(rows, made, type_name)

    def _lost(self, rows: Floats, made: NDArray[np.uint8], type_name: str) -> Sums:
        assert self.factor is not None
        diagonal, shrink = self.factor.diagonal, self.factor.shrink
        under_all = float(surgeon_kernels.feedback_error(rows, made, type_name, self.blocks).sum())
        squares = np.square(rows - surgeon_kernels.dequantize(made, type_name), dtype=np.float64).sum(axis=0)
        lost = (1 - shrink) * under_all + shrink * float(squares @ diagonal)
        return np.array([lost, float(np.square(rows, dtype=np.float64).sum(axis=0) @ diagonal)])
