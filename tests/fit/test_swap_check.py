"""Whether a fit or the mix is taken, with measurements made up for the purpose."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fit_helpers import TYPES, allocator, types_of

from surgeon.fit.allocation import Fit, Mixed
from surgeon.fit.candidates import TypeSet
from surgeon.fit.cost_model import CostModel
from surgeon.measure.fitting import swap_check
from surgeon.model.model import Model
from surgeon.plan.plan import Plan, TypeRule


def outcome(
    model: Model, costs: CostModel, monkeypatch: pytest.MonkeyPatch, gain: float, measured: float | None
) -> tuple[Fit, Fit, Mixed]:
    """What is taken, the fit, the mix; gain, measured: the fit's divergence over the mix's, predicted and probed."""

    def probed(_prober: object, _text: object, plans: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
        assert measured is not None, "not to be measured"
        yield None
        return {"fit": {"mean_kld": measured}, "mix": {"mean_kld": 1.0}}

    monkeypatch.setattr(swap_check, "measured_plans", probed)
    made = allocator(model, costs)
    mix = next(mix for mix in made.mixes if mix.name == "Q4_K_M")
    fit = made.fit(mix.nbytes)
    fit = replace(fit, predicted=replace(fit.predicted, kld=gain * mix.predicted.kld))
    steps = swap_check.checked(None, None, made, fit, mix)  # type: ignore[arg-type]
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, fit, mix


@pytest.mark.parametrize(("gain", "measured"), [(0.5, None), (0.95, 0.9)])
def test_a_fit_that_is_better_is_kept(
    model: Model,
    costs: CostModel,
    monkeypatch: pytest.MonkeyPatch,
    gain: float,
    measured: float | None,
) -> None:
    taken, fit, _ = outcome(model, costs, monkeypatch, gain, measured)
    assert taken is fit


@pytest.mark.parametrize("measured", [0.99, 1.3])
def test_the_mix_is_taken_where_the_gain_is_not_measured(
    model: Model,
    costs: CostModel,
    monkeypatch: pytest.MonkeyPatch,
    measured: float,
) -> None:
    taken, fit, mix = outcome(model, costs, monkeypatch, 0.95, measured)
    assert types_of(taken) == {op.source: op.to_type for op in mix.resolution.kept}
    assert types_of(taken) != types_of(fit)
    assert taken.resolution.total_bytes <= mix.nbytes
    assert taken.predicted.kld == pytest.approx(mix.predicted.kld)


def test_a_mix_that_the_user_does_not_allow_is_no_rival(model: Model, costs: CostModel) -> None:
    free = allocator(model, costs)
    mix = next(mix for mix in free.mixes if mix.name == "Q4_K_M")
    assert free.as_mix(mix) is not None
    assert allocator(model, costs, types=TypeSet(("Q2_K", "Q8_0"))).as_mix(mix) is None
    ruled = allocator(model, costs, Plan(rules=(TypeRule("ffn_down", "Q8_0"),)))
    assert ruled.as_mix(mix) is None, "more bytes than the mix"
    assert Path(model.file.path).exists()
    assert set(TYPES) >= set(types_of(free.fit(mix.nbytes)).values()) - {"F32", "F16"}
