"""Perplexity from sums over scored tokens; the child adds tokens up, the parent what several children did."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class PerplexityTotals:
    """Running sums of −log p: count of scored tokens, Σ and Σ of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def join(self, count: float, total: float, squares: float) -> None:
        """Add the sums over other tokens."""
        self.count += int(count)
        self.total += total
        self.squares += squares

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def mean_error(self) -> float:
        """Standard error of the mean; 0 for fewer than two tokens."""
        if self.count < 2:
            return 0.0
        variance = self.squares / self.count - self.mean**2
        return math.sqrt(max(0.0, variance) / (self.count - 1))

    @property
    def ppl(self) -> float:
        return math.exp(self.mean) if self.mean < 709 else math.inf  # beyond the largest float

    @property
    def ppl_error(self) -> float:
        return self.mean_error * self.ppl

    @property
    def figures(self) -> dict[str, float]:
        """`ppl` and `ppl_error`; none before the first token."""
        return {"ppl": self.ppl, "ppl_error": self.ppl_error} if self.count else {}
