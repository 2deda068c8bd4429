"""The bundled model with costs made up for the purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fit_helpers import TYPES

from surgeon.fit.cost_model import CostModel, GroupProbes, Probe
from surgeon.fit.groups import groups_of
from surgeon.model.model import Model, load_model
from surgeon_kernels.formats import FORMATS


@pytest.fixture
def model(demo_model: Path) -> Iterator[Model]:
    opened = load_model(demo_model)
    with opened.file:
        yield opened


@pytest.fixture
def costs(model: Model) -> CostModel:
    """Errors of 4^-bits, every group alike but the head, which matters a hundred times as much."""
    groups = {group: tuple(facts.name for facts in members) for group, members in groups_of(model).items()}
    errors = {name: {kind: 4.0 ** -FORMATS[kind].bpw for kind in TYPES} for names in groups.values() for name in names}

    def probe(names: tuple[str, ...], kind: str, scale: float) -> Probe:
        kld = scale * sum(errors[name][kind] for name in names)
        return Probe(dict.fromkeys(names, kind), kld, 0.05 * kld)

    probes = {}
    for group, names in groups.items():
        scale = 1.0 if group == "output" else 0.01
        probes[group] = GroupProbes(probe(names, "Q2_K", scale), probe(names, "Q4_K", scale))
    return CostModel(errors, groups, probes, None)
