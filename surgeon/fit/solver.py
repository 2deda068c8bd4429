"""A type for every tensor within a number of bytes, so that the sum of the costs is least.

The multiple-choice knapsack. A multiplier λ on the bytes decouples the tensors (each takes the type with the least
cost + λ · bytes; Everett 1963, "Generalized Lagrange Multiplier Method"); the smallest λ whose choice fits is found by
bisection. It leaves at most one step of one tensor unused, which is then filled: first the steps that save most per
byte, then exchanges of a step down for a better step up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import SurgeonError

Costs = NDArray[np.float64]
Sizes = NDArray[np.int64]
Choice = NDArray[np.intp]

_BISECTIONS = 60
_EXCHANGES = 64


class UnreachableError(SurgeonError):
    """No choice fits: `least` bytes are the fewest."""

    def __init__(self, least: int) -> None:
        super().__init__(f"the smallest choice has {least} bytes")
        self.least = least


def solve(costs: Costs, sizes: Sizes, budget: int) -> Choice:
    """The column to choose in each row, intp[n], with Σ sizes ≤ budget and Σ costs as small as found.

    costs: float64[n, m], infinite where a type is not allowed; sizes: bytes, int64[n, m].
    Raises UnreachableError when even the smallest choice is larger, ValueError for a row that allows nothing.
    """
    if not np.isfinite(costs).any(axis=1).all():
        raise ValueError("a row allows no column")
    allowed = np.isfinite(costs)
    smallest = _smallest(costs, sizes, allowed)
    least = _total(sizes, smallest)
    if least > budget:
        raise UnreachableError(least)
    choice = _by_multiplier(costs, sizes, budget, smallest)
    choice = _filled(costs, sizes, budget, choice)
    return _exchanged(costs, sizes, budget, choice)


def _smallest(costs: Costs, sizes: Sizes, allowed: NDArray[np.bool_]) -> Choice:
    """The fewest bytes in every row; among equals the cheapest."""
    fewest = np.where(allowed, sizes, np.iinfo(np.int64).max)
    ties = fewest == fewest.min(axis=1, keepdims=True)
    found: Choice = np.where(ties, costs, np.inf).argmin(axis=1)
    return found


def _total(sizes: Sizes, choice: Choice) -> int:
    return int(sizes[np.arange(len(sizes)), choice].sum())


def _by_multiplier(costs: Costs, sizes: Sizes, budget: int, smallest: Choice) -> Choice:
    """The choice of the smallest multiplier found whose bytes fit; the smallest choice where none does."""
    cheapest: Choice = costs.argmin(axis=1)
    if _total(sizes, cheapest) <= budget:
        return cheapest
    span = np.where(np.isfinite(costs), costs, 0.0)
    # Above this multiplier one byte outweighs every difference of costs.
    low, high = 1e-30, float(np.ptp(span, axis=1).max()) + 1e-30
    best = smallest
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(low * high))
        choice = (costs + middle * sizes).argmin(axis=1)
        if _total(sizes, choice) > budget:
            low = middle
        else:
            high, best = middle, choice
    return best


def _filled(costs: Costs, sizes: Sizes, budget: int, choice: Choice) -> Choice:
    """Step by step the change that saves most per byte and still fits, until none does."""
    choice = choice.copy()
    rows = np.arange(len(costs))
    gains = costs[rows, choice][:, None] - costs
    more = sizes - sizes[rows, choice][:, None]
    rates = _rates(gains, more)
    left = budget - _total(sizes, choice)
    while True:
        best = int(np.where(more <= left, rates, -np.inf).argmax())
        row, column = divmod(best, costs.shape[1])
        if not rates[row, column] > 0 or more[row, column] > left:
            return choice
        left -= int(more[row, column])
        choice[row] = column
        gains[row] = costs[row, column] - costs[row]
        more[row] = sizes[row] - sizes[row, column]
        rates[row] = _rates(gains[row], more[row])


def _rates(gains: Costs, more: Sizes) -> Costs:
    """Saving per byte; infinite for what saves without costing a byte."""
    free = np.where(more <= 0, np.inf, gains / np.maximum(more, 1))
    return np.where(gains > 0, free, -np.inf)


def _exchanged(costs: Costs, sizes: Sizes, budget: int, choice: Choice) -> Choice:
    """Pairs of rows: one gives bytes up, the other uses them (and what was left over) for more than that costs."""
    choice = choice.copy()
    for _ in range(_EXCHANGES):
        pair = _best_exchange(costs, sizes, budget - _total(sizes, choice), choice)
        if pair is None:
            return choice
        for row, column in pair:
            choice[row] = column
    return choice


def _best_exchange(
    costs: Costs, sizes: Sizes, left: int, choice: Choice
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    rows = np.arange(len(costs))
    gains = (costs[rows, choice][:, None] - costs).ravel()
    more = (sizes - sizes[rows, choice][:, None]).ravel()
    up = np.flatnonzero((more > 0) & (gains > 0))
    down = np.flatnonzero((more < 0) & np.isfinite(gains))
    if not len(up) or not len(down):
        return None
    up = up[np.argsort(more[up], kind="stable")]
    # For every number of bytes the best gain that fits into them, by a running maximum.
    best_gain = np.maximum.accumulate(gains[up])
    is_new = np.concatenate([[True], gains[up][1:] > best_gain[:-1]])
    best_place = np.maximum.accumulate(np.where(is_new, np.arange(len(up)), 0))
    fits = np.searchsorted(more[up], left - more[down], side="right") - 1
    net = np.where(fits >= 0, best_gain[np.maximum(fits, 0)] + gains[down], -np.inf)
    columns = costs.shape[1]
    for place in np.argsort(-net, kind="stable")[:8]:
        if not net[place] > 1e-15:
            return None
        taken, given = int(up[best_place[fits[place]]]), int(down[place])
        if taken // columns != given // columns:  # a row cannot do both
            return (divmod(given, columns), divmod(taken, columns))
    return None
