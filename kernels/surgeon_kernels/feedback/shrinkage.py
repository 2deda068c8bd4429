"""How far second moments can be trusted, from two halves of the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .encoder import feedback_error, quantize_with_feedback
from .factors import Floats, Moments, factor

CANDIDATES = (0.1, 0.25, 0.5, 0.75)


def choose_shrink(
    rows: Floats, qtype: Any, first_half: Moments, second_half: Moments, candidates: Sequence[float] = CANDIDATES
) -> float:
    """The shrinkage of `candidates` whose encoding of `rows` under one half's H loses least under the other's.

    rows: some rows of a matrix, float32[r, m]; halves: H from documents that do not overlap, as `factor` takes them.
    Each candidate costs a factor and an encoding of the rows. Raises ValueError as `factor` does.
    """

    def loss(shrink: float) -> float:
        blocks = quantize_with_feedback(rows, qtype, factor(first_half, shrink=shrink))
        return float(feedback_error(rows, blocks, qtype, second_half).sum())

    return min(candidates, key=loss)
