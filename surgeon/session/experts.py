"""Experts × layers under the plan, binned to a screen: how often called, how heavy, how salient, what is pruned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from surgeon.anatomy import expert_model
from surgeon.anatomy.expert_pruning import ExpertModel
from surgeon.errors import SurgeonError
from surgeon.imatrix.experts import ExpertSums, calls_of
from surgeon.imatrix.imatrix import Imatrix
from surgeon.plan import plan as plans
from surgeon.plan.plan import Plan
from surgeon.resolve.expert_choice import choose_experts
from surgeon.session.layer_figures import influence_of
from surgeon.session.session import Session

Float64 = NDArray[np.float64]

# id -> what the title says
MEASURES = {
    "saliency": "saliency: mean weight × |output|",
    "gate": "router weight: share of the layer's",
    "calls": "calls: tokens routed to the expert",
}


@dataclass(frozen=True, eq=False)
class Cell:
    """Neighbouring experts of neighbouring layers. level: place in the layer, 0 lowest to 1 highest, the mean over the
    cell, NaN without data; pruned: share that is; idle: experts no token was routed to.
    """

    layers: tuple[int, ...]
    experts: range
    level: float
    pruned: float
    idle: int


@dataclass(frozen=True, eq=False)
class Grid:
    """rows: layers from top to bottom; each row has the same columns."""

    rows: tuple[tuple[Cell, ...], ...]
    layers_per_row: int
    experts_per_column: int


@lru_cache(4)
def _sums_of(imatrix: Imatrix, layers: int) -> ExpertSums | None:
    influence = influence_of(imatrix.path)
    if influence is not None and influence.experts is not None:
        return influence.experts
    calls = calls_of(imatrix, layers)
    return None if calls is None else ExpertSums(calls, np.zeros_like(calls), np.zeros_like(calls))


def expert_sums(session: Session) -> ExpertSums | None:
    """What the session's imatrix knows of the experts of its model; None: nothing."""
    if session.imatrix is None:
        return None
    sums = _sums_of(session.imatrix, session.model.block_count)
    return sums if sums is not None and sums.calls.shape[1] == expert_model(session.model).count else None


def values_of(sums: ExpertSums | None, measure: str) -> Float64 | None:
    """float64[layers, experts] of one of MEASURES; None where it is not known."""
    if sums is None or (measure != "calls" and not sums.gate.any()):
        return None
    return {"saliency": sums.mean_saliency, "gate": sums.gate, "calls": sums.calls}[measure]


def grid(session: Session, measure: str, columns: int, rows: int) -> Grid:
    """All experts of all layers in at most `columns` × `rows` cells, each of the same size but for the last ones."""
    model, sums = expert_model(session.model), expert_sums(session)
    layers = sorted(model.layers)
    per_column, per_row = -(-model.count // max(1, columns)), -(-len(layers) // max(1, rows))
    tops, lefts = range(0, len(layers), per_row), range(0, model.count, per_column)
    ranks = _ranks(model, layers, values_of(sums, measure))
    known = _binned(~np.isnan(ranks), tops, lefts)
    levels = np.where(known > 0, _binned(np.nan_to_num(ranks), tops, lefts) / np.maximum(known, 1), np.nan)
    idle = _binned(_idle(model, layers, sums), tops, lefts)
    gone = _pruned(model, layers, session.plan)
    pruned = _binned(gone, tops, lefts) / _binned(np.ones_like(gone), tops, lefts)
    rows_of_cells = tuple(
        tuple(
            Cell(
                layers=tuple(layers[top : top + per_row]),
                experts=range(left, min(left + per_column, model.count)),
                level=float(levels[row, column]),
                pruned=float(pruned[row, column]),
                idle=int(idle[row, column]),
            )
            for column, left in enumerate(lefts)
        )
        for row, top in enumerate(tops)
    )
    return Grid(rows_of_cells, per_row, per_column)


def _binned(values: NDArray[np.generic], tops: range, lefts: range) -> Float64:
    """Sums over the cells that begin at these rows and columns."""
    sums: Float64 = np.add.reduceat(np.add.reduceat(values.astype(np.float64), tops, axis=0), lefts, axis=1)
    return sums


def _ranks(model: ExpertModel, layers: Sequence[int], values: Float64 | None) -> Float64:
    """An expert's place in its layer, 0 the lowest to 1 the highest; NaN without data.

    Places and not values: every layer prunes as many experts, so layers need not be compared with one another.
    """
    ranks = np.full((len(layers), model.count), np.nan)
    for row, layer in enumerate(layers):
        if values is not None and layer < len(values) and values[layer].any():
            ranks[row, np.argsort(values[layer], kind="stable")] = np.arange(model.count) / max(1, model.count - 1)
    return ranks


def _idle(model: ExpertModel, layers: Sequence[int], sums: ExpertSums | None) -> NDArray[np.bool_]:
    idle = np.zeros((len(layers), model.count), np.bool_)
    for row, layer in enumerate(layers):
        if sums is not None and layer < len(sums.calls) and sums.calls[layer].any():
            idle[row] = sums.calls[layer] == 0
    return idle


def _pruned(model: ExpertModel, layers: Sequence[int], plan: Plan) -> NDArray[np.bool_]:
    pruned = np.zeros((len(layers), model.count), np.bool_)
    places = {layer: row for row, layer in enumerate(layers)}
    for layer in plan.pruned & places.keys():
        pruned[places[layer]] = True
    for layer, gone in plan.pruned_experts:
        if layer in places:
            pruned[places[layer], [expert for expert in gone if expert < model.count]] = True
    return pruned


def toggle(session: Session, cell: Cell) -> str:
    """Prune the experts of a cell, or bring them back when all are pruned; returns what was done."""
    layers = [layer for layer in cell.layers if layer not in session.plan.pruned]
    plan = plans.with_experts_toggled(session.plan, dict.fromkeys(layers, cell.experts))
    before, after = (sum(len(gone) for _, gone in one.pruned_experts) for one in (session.plan, plan))
    label = f"{'prune' if after > before else 'restore'} {abs(after - before)} experts"
    session.change(plan, label)
    return label


def prune_least(session: Session, amount: str, measure: str = "saliency") -> str:
    """Prune `25%` or `16` experts of every layer, the lowest of `measure`; `0`: none. Raises SurgeonError."""
    plan = pruned_least(session, session.plan, amount, measure)
    label = f"prune experts: {amount} by {measure}" if plan.pruned_experts else "restore all experts"
    session.change(plan, label)
    return label


def pruned_least(session: Session, plan: Plan, amount: str, measure: str = "saliency") -> Plan:
    """What `prune_least` makes of `plan`. Raises SurgeonError."""
    experts = expert_model(session.model)
    if not experts.layers:
        raise SurgeonError(f"{session.model.name} has no experts")
    cleared = plans.with_pruned_experts(plan, dict.fromkeys(experts.layers, ()))
    if amount.strip() in ("0", "0%"):
        return cleared
    if session.imatrix is None:
        raise SurgeonError("no imatrix to choose experts by: i loads one, I collects one")
    choice = choose_experts(session.model, amount, measure, session.imatrix, expert_sums(session), plan.pruned)
    return plans.with_pruned_experts(cleared, choice.sets)


def number_pruned(session: Session) -> set[int]:
    """How many experts the layers lose: one number, or several while marks differ."""
    gone = dict(session.plan.pruned_experts)
    layers: Iterable[int] = expert_model(session.model).layers.keys() - session.plan.pruned
    return {len(gone.get(layer, ())) for layer in layers}
