"""The knapsack against every choice there is, on small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from surgeon.fit.solver import UnreachableError, solve


def best_of_all(costs: np.ndarray, sizes: np.ndarray, budget: int) -> float:
    rows = range(len(costs))
    return min(
        sum(costs[row, column] for row, column in zip(rows, choice, strict=True))
        for choice in itertools.product(range(costs.shape[1]), repeat=len(costs))
        if sum(sizes[row, column] for row, column in zip(rows, choice, strict=True)) <= budget
    )


def totals(costs: np.ndarray, sizes: np.ndarray, choice: np.ndarray) -> tuple[float, int]:
    rows = np.arange(len(costs))
    return float(costs[rows, choice].sum()), int(sizes[rows, choice].sum())


@pytest.mark.parametrize("seed", range(30))
def test_small_cases_come_close_to_the_best_of_all_choices(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.sort(random.integers(10, 1000, (6, 4)), axis=1).astype(np.int64)
    costs = np.exp(-sizes / 200.0) * random.lognormal(0, 1.5, (6, 1))
    budget = int(random.integers(sizes.min(axis=1).sum(), sizes.max(axis=1).sum()))
    choice = solve(costs, sizes, budget)
    cost, size = totals(costs, sizes, choice)
    best = best_of_all(costs, sizes, budget)
    assert size <= budget
    assert best - 1e-12 <= cost <= 1.10 * best + 1e-12


def test_nothing_that_saves_still_fits() -> None:
    random = np.random.default_rng(5)
    sizes = np.outer(random.integers(1_000, 50_000, 200), [84, 110, 144, 176, 210, 272]).astype(np.int64)
    costs = np.outer(random.lognormal(0, 2, 200), [0.08, 0.02, 0.005, 0.0013, 0.0003, 0.00003])
    budget = int(sizes[:, 2].sum())
    choice = solve(costs, sizes, budget)
    rows = np.arange(len(costs))
    cost, size = totals(costs, sizes, choice)
    assert 0.998 * budget <= size <= budget
    assert cost < costs[:, 2].sum()
    more, gain = sizes - sizes[rows, choice][:, None], costs[rows, choice][:, None] - costs
    assert not ((more <= budget - size) & (gain > 0)).any()


def test_a_type_that_is_not_allowed_is_never_chosen() -> None:
    costs = np.array([[np.inf, 0.5, 0.1], [0.9, np.inf, 0.2]])
    sizes = np.array([[1, 2, 3], [1, 2, 3]], np.int64)
    assert solve(costs, sizes, 3).tolist() == [1, 0]
    assert solve(costs, sizes, 6).tolist() == [2, 2]


def test_a_budget_below_the_smallest_choice_says_how_small_it_is() -> None:
    with pytest.raises(UnreachableError) as raised:
        solve(np.ones((3, 2)), np.array([[10, 20]] * 3, np.int64), 29)
    assert raised.value.least == 30


def test_more_than_enough_takes_the_cheapest_in_the_fewest_bytes() -> None:
    costs, sizes = np.array([[0.3, 0.0, 0.0]]), np.array([[1, 5, 9]], np.int64)
    assert solve(costs, sizes, 100).tolist() == [1]
