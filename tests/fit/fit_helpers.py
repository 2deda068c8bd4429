"""Allocators on made-up costs, and what they chose."""

from __future__ import annotations

from surgeon.fit.allocation import Allocator, Fit, Limits
from surgeon.fit.candidates import TypeSet
from surgeon.fit.cost_model import CostModel
from surgeon.model.model import Model
from surgeon.plan.plan import Plan

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")


def allocator(model: Model, costs: CostModel, plan: Plan | None = None, **limits: object) -> Allocator:
    types = limits.pop("types", TypeSet(TYPES[:6]))
    return Allocator(model, plan or Plan(), None, costs, Limits(types=types, **limits))  # type: ignore[arg-type]


def types_of(fit: Fit) -> dict[str, str]:
    return {op.source: op.to_type for op in fit.resolution.kept}
