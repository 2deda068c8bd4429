"""Every expert of a model as matrices, layers down: in which order they are shown, how dark, and which of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from surgeon.anatomy import expert_model
from surgeon.anatomy.expert_pruning import ExpertModel
from surgeon.imatrix.experts import ExpertSums, calls_of
from surgeon.imatrix.imatrix import Imatrix
from surgeon.plan.plan import Plan
from surgeon.session.experts.filters import ExpertFigures, ExpertFilter
from surgeon.session.layer_figures import influence_of
from surgeon.session.session import Session

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Int = NDArray[np.int64]

# id -> what the title says
MEASURES = {
    "saliency": "saliency: mean weight × |output|",
    "gate": "router weight: share of the layer's",
    "calls": "calls: tokens routed to the expert",
}
# id -> what the title adds
ORDERS = {
    "number": "",
    "figure": "lowest first, shade by value",
    "layers": "layers by their lowest quarter",
}


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


@dataclass(frozen=True, eq=False)
class ExpertTable:
    """layers: from top to bottom; the matrices have a row for each and a column for every expert.

    experts: the number of the expert at this place; levels: how dark, 0 to 1, NaN without data; idle: no token was
    routed to it; shown: the filter leaves it.
    """

    layers: tuple[int, ...]
    experts: Int
    levels: Float64
    idle: Bool
    shown: Bool

    def pruned(self, plan: Plan) -> Bool:
        """Which of them `plan` prunes, with their layer or alone."""
        pruned = np.zeros(self.experts.shape, np.bool_)
        places = {layer: row for row, layer in enumerate(self.layers)}
        for layer in plan.pruned & places.keys():
            pruned[places[layer]] = True
        for layer, gone in plan.pruned_experts:
            if layer in places:
                row = places[layer]
                pruned[row] |= _among(gone, self.experts.shape[1])[self.experts[row]]
        return pruned


def table(
    session: Session,
    measure: str,
    order: str = "number",
    wanted: ExpertFilter | None = None,
    damages: dict[int, float] | None = None,
) -> ExpertTable:
    """All experts by one of MEASURES in one of ORDERS; damages: KL divergence by layer, which ranks the layers.

    By number the shade is an expert's place in its layer, not its value: every layer prunes as many, so layers need
    not be compared with one another.
    """
    model, sums = expert_model(session.model), expert_sums(session)
    layers = sorted(model.layers)
    values = _values(model, layers, values_of(sums, measure))
    calls = _values(model, layers, None if sums is None else sums.calls)
    ranked = np.argsort(values, axis=1, kind="stable")
    places = np.argsort(ranked, axis=1, kind="stable") / max(1, model.count - 1)
    known = ~np.isnan(values)
    levels = np.where(known, places, np.nan)
    idle = calls == 0
    shown = np.ones(values.shape, np.bool_)
    if wanted is not None:
        figures = ExpertFigures(np.array(layers), calls, _saliency(model, layers, sums), _gate(model, layers, sums))
        pruned = ExpertTable(tuple(layers), _numbers(values), levels, idle, shown).pruned(session.plan)
        shown = wanted.accepts(figures, places=levels, pruned=pruned)
    experts = _numbers(values)
    if order != "number":
        highest = np.nanmax(np.where(known, values, 0), axis=1, keepdims=True)
        levels = np.divide(values, highest, out=np.where(known, 0.0, np.nan), where=known & (highest > 0))
        experts, levels, idle, shown = (
            np.take_along_axis(matrix, ranked, axis=1) for matrix in (experts, levels, idle, shown)
        )
    rows = np.flatnonzero(shown.any(axis=1)).tolist()
    if order == "layers":
        rows.sort(key=lambda row: _worth(layers[row], sums, damages or {}))
    return ExpertTable(tuple(layers[row] for row in rows), experts[rows], levels[rows], idle[rows], shown[rows])


def _among(numbers: tuple[int, ...], count: int) -> Bool:
    """bool[count]: which of the experts are among `numbers`; what is out of range is for the pre-flight to tell."""
    found = np.zeros(count, np.bool_)
    found[[number for number in numbers if 0 <= number < count]] = True
    return found


def _numbers(values: Float64) -> Int:
    return np.broadcast_to(np.arange(values.shape[1]), values.shape)


def _worth(layer: int, sums: ExpertSums | None, damages: dict[int, float]) -> tuple[float, float]:
    """What a layer's least salient quarter matters: as measured, else by the weight the router gives it."""
    share = sums.weight_of_least(layer, 0.25) if sums is not None and layer < len(sums.calls) else 0.0
    return damages.get(layer, np.inf), share


def _values(model: ExpertModel, layers: list[int], values: Float64 | None) -> Float64:
    """Rows of `values` for these layers; NaN without data."""
    found = np.full((len(layers), model.count), np.nan)
    for row, layer in enumerate(layers):
        if values is not None and layer < len(values) and values[layer].any():
            found[row] = values[layer]
    return found


def _saliency(model: ExpertModel, layers: list[int], sums: ExpertSums | None) -> Float64:
    return _values(model, layers, values_of(sums, "saliency"))


def _gate(model: ExpertModel, layers: list[int], sums: ExpertSums | None) -> Float64:
    return _values(model, layers, values_of(sums, "gate"))
