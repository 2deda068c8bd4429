"""Costs from probes whose divergences follow a known law."""

from __future__ import annotations

import math

import pytest

from surgeon.fit.cost_model import CostModel, GroupProbes, Probe

ERRORS = {
    "a": {"Q2_K": 0.08, "Q4_K": 0.005, "Q6_K": 0.0003},
    "b": {"Q2_K": 0.12, "Q4_K": 0.006, "Q6_K": 0.0004},
    "out": {"Q2_K": 0.02, "Q4_K": 0.001, "Q6_K": 0.0001},
}
GROUPS = {"ffn": ("a", "b"), "output": ("out",)}


def shared(names: tuple[str, ...], kind: str) -> float:
    return math.prod(ERRORS[name][kind] for name in names) ** (1 / len(names))


def model(law: dict[str, tuple[float, float]], noise: float, spread: float = 1e-4) -> CostModel:
    """law: group -> (scale, power) of n · scale · (e + noise)^power, e the geometric mean over the n tensors."""

    def kld(names: tuple[str, ...], kind: str, group: str) -> float:
        scale, power = law[group]
        return scale * len(names) * (shared(names, kind) + noise) ** power

    def probe(names: tuple[str, ...], kind: str, group: str) -> Probe:
        value = kld(names, kind, group)
        return Probe(dict.fromkeys(names, kind), value, spread * value)

    probes = {g: GroupProbes(probe(n, "Q2_K", g), probe(n, "Q4_K", g)) for g, n in GROUPS.items()}
    total = sum(kld(names, "Q6_K", group) for group, names in GROUPS.items())
    everything = Probe(dict.fromkeys(ERRORS, "Q6_K"), total, spread * total)
    return CostModel(ERRORS, GROUPS, probes, everything)


def test_a_proportional_law_and_the_noise_are_found_again() -> None:
    costs = model({"ffn": (0.05, 1.0), "output": (1.6, 1.0)}, noise=2e-4)
    assert costs.noise == pytest.approx(2e-4, rel=0.02)
    assert costs.cost("a", "Q6_K") == pytest.approx(0.05 * (shared(("a", "b"), "Q6_K") + 2e-4), rel=0.02)
    predicted = costs.predicted({"a": "Q4_K", "b": "Q2_K", "out": "Q6_K"})
    assert predicted is not None
    ffn = shared(("a", "b"), "Q4_K") + shared(("a", "b"), "Q2_K") + 2 * 2e-4
    assert predicted.kld == pytest.approx(0.05 * ffn + 1.6 * 3e-4, rel=0.01)
    assert 0 < predicted.error < 1e-3 * predicted.kld


def test_a_steeper_law_is_followed() -> None:
    costs = model({"ffn": (0.05, 1.15), "output": (1.6, 1.0)}, noise=0.0)
    assert costs.curves["ffn"].power == pytest.approx(1.15, abs=0.02)
    assert costs.curves["output"].power == pytest.approx(1.0, abs=0.01)
    assert costs.cost("b", "Q6_K") == pytest.approx(0.05 * shared(("a", "b"), "Q6_K") ** 1.15, rel=0.05)


def test_a_tensor_with_next_to_no_error_costs_what_its_group_does() -> None:
    """A channel of huge activations hides what the others lose."""
    costs = model({"ffn": (0.05, 1.0), "output": (1.6, 1.0)}, noise=0.0)
    errors = ERRORS | {"a": {kind: error / 500 for kind, error in ERRORS["a"].items()}}
    hidden = CostModel(errors, GROUPS, costs.probes, costs.everything)
    assert hidden.error("a", "Q2_K") == ERRORS["a"]["Q2_K"] / 500
    for kind in ("Q2_K", "Q4_K"):
        assert hidden.cost("a", kind) == hidden.cost("b", kind) == pytest.approx(costs.cost("b", kind), rel=0.05)


def test_a_power_that_is_only_noise_stays_at_one() -> None:
    costs = model({"ffn": (0.05, 1.6), "output": (1.6, 1.0)}, noise=0.0, spread=0.9)
    assert 1.0 < costs.curves["ffn"].power < 1.1


def test_what_was_not_measured_has_no_cost() -> None:
    costs = model({"ffn": (0.05, 1.0), "output": (1.6, 1.0)}, noise=0.0)
    assert costs.cost("a", "Q3_K") is None
    assert costs.cost("unknown", "Q2_K") is None
    assert costs.predicted({"a": "Q3_K"}) is None
    assert costs.predicted({}) is not None
