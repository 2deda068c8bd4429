"""From errors and probes to the cost of giving a tensor a type: its share of the predicted KL divergence.

A group g (a kind of tensor in a stretch of the depth) was measured with its tensors at a low and at a middle type, the
rest untouched: K_low and K_middle. Small errors of weights raise the KL divergence in proportion to their squares, so
K ≈ s · Σ e; the power that the two probes show takes the place of 1 where they show another one:

    c(q) = K_low / Σ e'(low) · e'(q) · (e'(q) / e'(low))^(p − 1)        e'(q) = geometric mean of e_t(q) over g, + ε²
    p = ln(K_low / K_middle) / ln(Σ e'(low) / Σ e'(middle)), drawn towards 1 by its standard error

The tensors of a group share one error for each type. A tensor's own says little about its share of the damage: where a
channel of huge activations rules the output, the relative error is next to nothing, and a choice by own errors gives
that tensor 2 bits. On SmolLM2-135M such choices were worse than llama-quantize's mix at the bytes of Q5_K_M; with
shared errors they are as good, and a fifth better at the bytes of Q4_K_M (a model without such channels: no change).

ε² is what every quantized type costs alike, because llama.cpp rounds the other operand to 8 bits too. One probe with
everything at a high type tells it: there Σ c_t(high) must be what was measured. Costs add up over tensors and groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgeon.fit.tensor_errors import Errors
from surgeon.plan.plan import changes_types_only
from surgeon.resolve.resolution import Resolution

if TYPE_CHECKING:
    from surgeon.moments.moments import Moments

STOCK = "stock"
_POWER_DEVIATION = 0.1  # how far from 1 powers lie, before anything is measured
_NOISE_LIMIT = 1e-2
_BISECTIONS = 50
_LEAST_ERROR = 1e-12  # of what is stored as it is


def encoder_of(moments: Moments | None, shrink: float | None, rounds: int) -> str:
    """What encodes: the stock encoder, or that with feedback by these second moments and settings."""
    return STOCK if moments is None else f"feedback {moments.digest} {shrink} {rounds}"


@dataclass(frozen=True, slots=True)
class Probe:
    """One measured divergence: types of the tensors exchanged for it; kld and its standard error over tokens."""

    types: dict[str, str]
    kld: float
    error: float


@dataclass(frozen=True, slots=True)
class GroupProbes:
    """The two probes of a group."""

    low: Probe
    middle: Probe


@dataclass(frozen=True, slots=True)
class Curve:
    """How the divergence of a group grows: scale K_low / Σ e'(low), its relative standard error, and the power."""

    scale: float
    relative_error: float
    power: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """A predicted KL divergence and its standard error, as if the errors of all groups went the same way."""

    kld: float
    error: float


class CostModel:
    """cost(tensor, type) for every tensor with errors and a measured group; `noise` is ε².

    encoder: which one errors and probes were measured with (`encoder_of`); costs hold for its plans only.
    """

    def __init__(
        self,
        errors: Errors,
        groups: Mapping[str, tuple[str, ...]],
        probes: Mapping[str, GroupProbes],
        everything: Probe | None,
        encoder: str = STOCK,
    ) -> None:
        self.errors, self.encoder = errors, encoder
        self.group_of = {name: group for group, names in groups.items() for name in names}
        self._shared = {group: _shared_errors(errors, names) for group, names in groups.items()}
        self.probes = probes
        self.everything = everything
        self.noise = self._noise() if everything is not None else 0.0
        self.curves = self._curves(self.noise)

    def error(self, name: str, type_name: str) -> float | None:
        """The relative error of a tensor in a type, its own, None where it was not worked out."""
        return self.errors.get(name, {}).get(type_name)

    def cost(self, name: str, type_name: str) -> float | None:
        """Its share of the predicted KL divergence; None where no probe or error says."""
        return self._cost(self.curves, self.noise, name, type_name)

    def predicted(self, types: Mapping[str, str]) -> Predicted | None:
        """For tensor -> type of all that are changed; None where one of them has no cost."""
        kld = error = 0.0
        for name, type_name in types.items():
            cost = self.cost(name, type_name)
            if cost is None:
                return None
            kld += cost
            error += cost * self.curves[self.group_of[name]].relative_error
        return Predicted(kld, error)

    def predicted_of(self, resolution: Resolution) -> Predicted | None:
        """For a resolved plan; None for one that does more than change types, or whose cost is not known."""
        return self.predicted_types(resolution) if changes_types_only(resolution.plan) else None

    def predicted_types(self, resolution: Resolution) -> Predicted | None:
        """For the types a resolved plan gives, whatever it does to metadata; None where their cost is not known."""
        plan = resolution.plan
        if encoder_of(resolution.moments, plan.shrink, plan.feedback_rounds) != self.encoder:
            return None
        return self.predicted({op.source: op.to_type for op in resolution.kept if op.action == "convert"})

    def _curves(self, noise: float) -> dict[str, Curve]:
        return {group: _curve(probes, self._shared[group], noise) for group, probes in self.probes.items()}

    def _cost(self, curves: Mapping[str, Curve], noise: float, name: str, type_name: str) -> float | None:
        group = self.group_of.get(name, "")
        if self.error(name, type_name) is None or group not in curves:
            return None
        curve, low, shared = curves[group], self.probes[group].low, self._shared[group]
        error = shared[type_name] + noise
        reference = shared.get(low.types.get(name, ""), 0.0) + noise
        if reference <= 0 or error <= 0:
            return curve.scale * error
        return float(curve.scale * error * (error / reference) ** (curve.power - 1))

    def _noise(self) -> float:
        """The ε² with which everything at the high type costs what it was measured to cost; 0 where less is needed."""
        everything = self.everything
        assert everything is not None

        def total(noise: float) -> float:
            curves = self._curves(noise)
            costs = (self._cost(curves, noise, name, kind) for name, kind in everything.types.items())
            return sum(cost for cost in costs if cost is not None)

        low, high = 0.0, _NOISE_LIMIT
        if total(0.0) >= everything.kld:
            return 0.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if total(middle) < everything.kld:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def _shared_errors(errors: Errors, names: tuple[str, ...]) -> dict[str, float]:
    """Type -> geometric mean of the errors of the tensors that have one in it."""
    found: dict[str, list[float]] = {}
    for name in names:
        for kind, error in errors.get(name, {}).items():
            found.setdefault(kind, []).append(math.log(max(error, _LEAST_ERROR)))
    return {kind: math.exp(sum(logs) / len(logs)) for kind, logs in found.items()}


def _curve(probes: GroupProbes, shared: Mapping[str, float], noise: float) -> Curve:
    sums = [sum(shared[kind] + noise for kind in probe.types.values()) for probe in _pair(probes)]
    low, middle = probes.low, probes.middle
    # A divergence lost in the noise of the tokens is taken as that noise: never free.
    kld = max(low.kld, low.error, 1e-9)
    relative = min(1.0, low.error / kld)
    scale = kld / sums[0] if sums[0] > 0 else 0.0
    return Curve(scale, relative, _power(kld, low.error, max(middle.kld, 1e-12), middle.error, sums))


def _pair(probes: GroupProbes) -> tuple[Probe, Probe]:
    return probes.low, probes.middle


def _power(low: float, low_error: float, middle: float, middle_error: float, sums: list[float]) -> float:
    if min(sums) <= 0 or sums[0] <= 1.2 * sums[1]:
        return 1.0
    span = math.log(sums[0] / sums[1])
    variance = ((low_error / low) ** 2 + (middle_error / middle) ** 2) / span**2
    seen = math.log(low / middle) / span
    trust = _POWER_DEVIATION**2 / (_POWER_DEVIATION**2 + variance)
    return 1.0 + trust * (min(2.0, max(0.5, seen)) - 1.0)
