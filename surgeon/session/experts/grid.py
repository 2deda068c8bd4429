"""Experts × layers under the plan, binned to a screen: how often called, how heavy, how salient, what is pruned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from surgeon.anatomy import expert_model
from surgeon.errors import SurgeonError
from surgeon.plan import plan as plans
from surgeon.plan.plan import Plan
from surgeon.resolve.expert_choice import choose_experts
from surgeon.session.experts.table import ExpertTable, expert_sums
from surgeon.session.session import Session

Float64 = NDArray[np.float64]
Sets = dict[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Cell:
    """Experts side by side in layers one below the other. sets: layer -> those of its experts that the filter leaves;
    level: how dark, 0 to 1, the mean over the cell, NaN without data; pruned: share that is; idle: experts no token
    was routed to.
    """

    layers: tuple[int, ...]
    sets: Sets
    level: float
    pruned: float
    idle: int


@dataclass(frozen=True, eq=False)
class Grid:
    """A table in cells of `layers_per_row` × `experts_per_column` experts; the matrices have one value for each cell.

    levels: mean darkness, NaN without data; idle, shown: experts; pruned: share of those shown.
    """

    table: ExpertTable
    layers_per_row: int
    experts_per_column: int
    levels: Float64
    idle: Float64
    shown: Float64
    pruned: Float64

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.levels.shape
        return rows, columns

    def layers(self, row: int) -> tuple[int, ...]:
        return self.table.layers[row * self.layers_per_row : (row + 1) * self.layers_per_row]

    def cell(self, row: int, column: int) -> Cell:
        left = column * self.experts_per_column
        sets = {}
        for place, layer in enumerate(self.layers(row), row * self.layers_per_row):
            part = slice(left, left + self.experts_per_column)
            sets[layer] = tuple(self.table.experts[place, part][self.table.shown[place, part]].tolist())
        return Cell(
            self.layers(row),
            sets,
            float(self.levels[row, column]),
            float(self.pruned[row, column]),
            int(self.idle[row, column]),
        )


def grid(found: ExpertTable, plan: Plan, columns: int, rows: int) -> Grid:
    """A table in at most `columns` × `rows` cells, each of the same size but for the last ones."""
    layers, count = found.experts.shape
    per_column, per_row = -(-count // max(1, columns)), max(1, -(-layers // max(1, rows)))
    tops, lefts = range(0, layers, per_row), range(0, count, per_column)
    shown = _binned(found.shown, tops, lefts)
    known = _binned(found.shown & ~np.isnan(found.levels), tops, lefts)
    levels = _binned(np.where(found.shown, np.nan_to_num(found.levels), 0), tops, lefts)
    return Grid(
        found,
        per_row,
        per_column,
        np.divide(levels, known, out=np.full_like(levels, np.nan), where=known > 0),
        _binned(found.shown & found.idle, tops, lefts),
        shown,
        _pruned(found, plan, tops, lefts, shown),
    )


def with_plan(cells: Grid, plan: Plan) -> Grid:
    """The same cells under another plan."""
    layers, count = cells.table.experts.shape
    tops, lefts = range(0, layers, cells.layers_per_row), range(0, count, cells.experts_per_column)
    return replace(cells, pruned=_pruned(cells.table, plan, tops, lefts, cells.shown))


def _pruned(found: ExpertTable, plan: Plan, tops: range, lefts: range, shown: Float64) -> Float64:
    """Share of the experts shown that `plan` prunes."""
    pruned = _binned(found.shown & found.pruned(plan), tops, lefts)
    return np.divide(pruned, shown, out=np.zeros_like(pruned), where=shown > 0)


def _binned(values: NDArray[np.generic], tops: range, lefts: range) -> Float64:
    """Sums over the cells that begin at these rows and columns."""
    if not len(tops):
        return np.zeros((0, len(lefts)))
    sums: Float64 = np.add.reduceat(np.add.reduceat(values.astype(np.float64), tops, axis=0), lefts, axis=1)
    return sums


def toggle(session: Session, sets: Sets) -> str:
    """Prune experts (by layer), or bring them back when all are pruned; returns what was done."""
    there = {layer: numbers for layer, numbers in sets.items() if layer not in session.plan.pruned}
    plan = plans.with_experts_toggled(session.plan, there)
    before, after = (sum(len(gone) for _, gone in one.pruned_experts) for one in (session.plan, plan))
    label = f"{'prune' if after > before else 'restore'} {abs(after - before)} expert{'s' * (abs(after - before) != 1)}"
    session.change(plan, label)
    return label


def shown_sets(found: ExpertTable) -> Sets:
    """Layer -> the experts that the filter leaves."""
    return {layer: tuple(found.experts[row][found.shown[row]].tolist()) for row, layer in enumerate(found.layers)}


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
