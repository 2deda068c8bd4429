"""Which parts of a model are fragile: what each kind of tensor, there in the depth, cost when it was probed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.fit.cost_model import CostModel, Probe
from surgeon.fit.groups import groups_of, kind_of, layers_of
from surgeon.model.model import Model


@dataclass(frozen=True)
class Part:
    """A kind of tensor in a stretch of the depth. layers: `0-3`, '' outside the layers; low, middle: its two probes."""

    group: str
    kind: str
    layers: str
    weights: int
    low: Probe
    middle: Probe

    @property
    def fragility(self) -> float:
        """KL divergence for each million of its weights at the low type: where a byte is worth most."""
        return self.low.kld / (self.weights / 1e6)


def parts_of(model: Model, costs: CostModel) -> list[Part]:
    """All that were probed, in order of depth, then as stored."""
    found = []
    for group, members in groups_of(model).items():
        probes = costs.probes.get(group)
        if probes is not None:
            weights = sum(facts.tensor.n_elements for facts in members)
            found.append(Part(group, kind_of(members[0]), layers_of(members), weights, probes.low, probes.middle))
    return found


def weights_unit(parts: Sequence[Part]) -> tuple[str, float]:
    """What fragilities are told for, a million or a billion weights, and the factor: in large models a million is next
    to nothing."""
    return ("million", 1.0) if max((part.fragility for part in parts), default=1.0) > 0.01 else ("billion", 1e3)


def by_kind(parts: list[Part]) -> Mapping[str, list[Part]]:
    """Kind -> its parts by depth; the kind with the most fragile part first."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.kind, []).append(part)
    return dict(sorted(found.items(), key=lambda item: -max(part.fragility for part in item[1])))


def types_of(probe: Probe) -> str:
    """`Q2_K`, or `Q2_K/Q4_0` where rows differ."""
    return "/".join(sorted(set(probe.types.values())))
