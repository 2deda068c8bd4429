"""The fits behind healing, against plain least squares and against models whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from surgeon.engine.child.healing.branches import Branch, heal
from surgeon.engine.child.healing.experts import ExpertFit, Routing
from surgeon.engine.child.healing.ridge import Moments, fitted, solved
from surgeon.engine.child.healing.samples import Chunks, Samples, token_weights
from surgeon.engine.child.healing.selection import held_back, shares

Float32 = NDArray[np.float32]
N_CTX = 16


def normal(seed: int, *shape: int) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def samples(inputs: Float32, wanted: Float32, kinds: int = 1) -> Samples:
    """Tokens whose branch shall add `wanted`; every fifth chunk is held back."""
    count = len(inputs) // N_CTX
    chunks = Chunks(np.arange(count) * kinds // count, np.array(held_back(count)), N_CTX)
    before = normal(99, *wanted.shape)
    return Samples(inputs, before, before + wanted, np.ones(len(inputs), np.float32), chunks)


def moments(inputs: Float32, missing: Float32, weights: Float32) -> Moments:
    """The sums, added in two parts."""
    sums = Moments(inputs.shape[1], missing.shape[1])
    for part in (slice(0, 37), slice(37, None)):
        sums.add(inputs[part], missing[part], missing[part], weights[part])
    return sums


@pytest.mark.parametrize("penalty", [1e-3, 0.3])
def test_the_ridge_is_that_of_least_squares(penalty: float) -> None:
    inputs, missing, weights = normal(0, 200, 24), normal(1, 200, 8), np.abs(normal(2, 200)) + 0.1
    sums = moments(inputs, missing, weights)
    root = np.sqrt(weights)[:, None].astype(np.float64)
    ridge = np.sqrt(penalty * np.trace((inputs * root).T @ (inputs * root)) / 24) * np.eye(24)
    rows = np.concatenate([inputs * root, ridge])
    expected = np.linalg.lstsq(rows, np.concatenate([missing * root, np.zeros((24, 8))]), rcond=None)[0]
    np.testing.assert_allclose(solved(sums, penalty), expected, rtol=1e-4, atol=1e-6)


def test_the_error_of_a_change_is_what_it_leaves() -> None:
    inputs, missing, weights = normal(0, 100, 12), normal(1, 100, 5), np.abs(normal(2, 100))
    change = normal(3, 12, 5)
    sums = moments(inputs, missing, weights)
    b, q = sums.error(change)
    left = (np.square(missing - 0.4 * inputs @ change).sum(axis=1) * weights).sum()
    assert sums.left - 2 * 0.4 * b + 0.4**2 * q == pytest.approx(left, rel=1e-4)


def test_nothing_to_learn_changes_nothing() -> None:
    noise = [moments(normal(seed, 60, 20), normal(seed + 10, 60, 6), np.ones(60, np.float32)) for seed in range(2)]
    fit = fitted(noise[:1], noise[1:])
    assert fit.change is None or fit.after > 0.98 * fit.before


def test_a_kind_of_text_that_would_do_worse_is_not_sacrificed() -> None:
    # Two kinds of text want opposite things: whatever helps one that is fitted harms the other.
    inputs, truth = normal(0, 400, 10), normal(1, 10, 4)
    ones = np.ones(400, np.float32)
    fit = fitted(
        [moments(inputs, inputs @ truth, ones), moments(inputs, -inputs @ truth, ones)],
        [moments(inputs, inputs @ truth, ones), moments(inputs, -inputs @ truth, ones)],
    )
    assert fit.change is None
    assert fit.after == fit.before


def test_a_plain_branch_finds_the_matrix_behind_the_noise() -> None:
    inputs, truth = normal(0, 1600, 32), normal(1, 8, 32)
    branch = Branch(truth + normal(2, 8, 32), bias=normal(3, 8))
    assert branch.bias is not None
    healed = heal(branch, samples(inputs, inputs @ truth.T + branch.bias + 0.05 * normal(4, 1600, 8)))
    assert healed.method == "ridge"
    assert healed.after < 0.01 * healed.before
    np.testing.assert_allclose(healed.branch.weight, truth, atol=0.05)


def test_a_normed_branch_finds_direction_and_gains() -> None:
    inputs = normal(0, 3200, 24)
    wanted = Branch(normal(1, 16, 24), gain=np.abs(normal(2, 16)) + 0.5)
    assert wanted.gain is not None
    start = Branch(wanted.weight + 0.7 * normal(3, 16, 24), gain=np.ones(16, np.float32))
    healed = heal(start, samples(inputs, wanted(inputs), kinds=2))
    assert healed.method == "refit"
    assert healed.after < 0.02 * healed.before
    # The norm forgets the scale of W, so it stays that of the old one.
    assert np.square(healed.branch.weight).mean() == pytest.approx(float(np.square(start.weight).mean()), rel=1e-3)


def test_gains_alone_where_only_they_are_wrong() -> None:
    inputs = normal(0, 1600, 24)
    wanted = Branch(normal(1, 16, 24), gain=np.abs(normal(2, 16)) + 0.5)
    assert wanted.gain is not None
    start = Branch(wanted.weight, gain=np.asarray(wanted.gain * 1.5, np.float32))
    healed = heal(start, samples(inputs, wanted(inputs)))
    assert healed.method == "gain"
    assert healed.branch.gain is not None
    np.testing.assert_allclose(healed.branch.gain, wanted.gain, rtol=1e-2)


def test_tokens_with_enormous_streams_hardly_count() -> None:
    goal = normal(0, 4, 8)
    goal[2] *= 1000
    weights = token_weights(goal)
    assert weights.mean() == pytest.approx(1)
    assert weights[2] < 1e-5 * weights[0]


@pytest.mark.parametrize(
    ("available", "wanted", "given"),
    [([10], 4, [4]), ([10], 40, [10]), ([3, 50], 20, [3, 17]), ([50, 50, 50], 10, [4, 3, 3]), ([9, 0], 4, [4, 0])],
)
def test_chunks_are_dealt_out_evenly(available: list[int], wanted: int, given: list[int]) -> None:
    assert shares(available, wanted) == given


def test_some_chunk_is_always_held_back() -> None:
    assert [sum(held_back(count)) for count in (2, 5, 10, 14)] == [1, 1, 2, 2]


EXPERTS, USED, COLUMNS, ROWS = 6, 2, 10, 5


def routed(seed: int, tokens: int, rare: int = 0) -> tuple[Routing, Float32]:
    """Tokens sent to two experts each, `rare` of them to the last one; and Σ g h D of a D that is not known."""
    dice = np.random.default_rng(seed)
    chosen = np.argsort(dice.random((tokens, EXPERTS - 1)))[:, :USED].astype(np.float32)
    chosen[:rare, 0] = EXPERTS - 1
    inputs, factors = normal(seed, tokens, USED * COLUMNS), np.abs(normal(seed + 1, tokens, USED)) + 0.2
    truth = normal(seed + 2, EXPERTS, COLUMNS, ROWS)
    read = inputs.reshape(tokens, USED, COLUMNS) * factors[:, :, None]
    return Routing(inputs, chosen, factors, EXPERTS), np.einsum("tuc,tucr->tr", read, truth[chosen.astype(int)])


def expert_fit(routing: Routing, missing: Float32, kinds: int = 1) -> ExpertFit:
    changes = np.zeros((EXPERTS, COLUMNS, ROWS), np.float32)
    return ExpertFit(routing, samples(missing, normal(7, *missing.shape), kinds), changes)


def test_experts_find_what_each_of_them_lacks() -> None:
    routing, missing = routed(0, 1600)
    fit = expert_fit(routing, missing + 0.05 * normal(5, *missing.shape))
    healed = fit.heal()
    assert sorted(healed.choices) == [*range(EXPERTS - 1)]
    assert healed.few == 1
    assert healed.after < 0.01 * healed.before
    # What is still missing is what the changes do not give: the stream that later layers are fitted on.
    given = np.zeros_like(missing)
    for expert in range(EXPERTS):
        for tokens, inputs in routing.blocks(routing.places(expert)):
            given[tokens] += inputs @ fit.changes[expert]
    np.testing.assert_allclose(fit.samples.inputs, missing + 0.05 * normal(5, *missing.shape) - given, atol=1e-3)


def test_an_expert_of_few_tokens_is_left_as_it_is() -> None:
    routing, missing = routed(0, 1600, rare=30)  # three for each column
    fit = expert_fit(routing, missing)
    healed = fit.heal()
    assert healed.few == 1
    assert not fit.changes[EXPERTS - 1].any()
    assert fit.changes[: EXPERTS - 1].any(axis=(1, 2)).all()


def test_experts_stay_where_a_kind_of_text_would_do_worse() -> None:
    routing, missing = routed(0, 1600)
    missing[1200:] *= -0.7  # a quarter of the chunks, of the other kind
    start = missing.copy()
    fit = expert_fit(routing, missing, kinds=4)
    healed = fit.heal()
    assert not healed.choices
    assert healed.after == healed.before
    assert not fit.changes.any()
    np.testing.assert_allclose(fit.samples.inputs, start, atol=1e-4)
