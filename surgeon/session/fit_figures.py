"""What the plan costs, tensor by tensor, from the sensitivities of the model: errors and predicted divergence."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping

from surgeon.fit.cost_model import CostModel
from surgeon.fit.fragility import parts_of
from surgeon.model.model import Model
from surgeon.resolve.tensor_op import TensorOp

Ops = Callable[[], Mapping[str, TensorOp]]
Costs = Callable[[], CostModel | None]


class PlanFigures(Mapping[str, float]):
    """Tensor -> a figure of the type that the present plan gives it; empty while nothing is known."""

    def __init__(self, ops: Ops, costs: Costs) -> None:
        self._ops, self._costs = ops, costs

    @abstractmethod
    def figure(self, costs: CostModel, op: TensorOp) -> float | None:
        """The figure of one tensor that the plan changes."""

    def __getitem__(self, name: str) -> float:
        costs, op = self._costs(), self._ops().get(name)
        if costs is None or op is None or op.action == "drop" or name not in costs.group_of:
            raise KeyError(name)
        found = 0.0 if op.to_type == op.from_type else self.figure(costs, op)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._ops() if name in self)

    def __len__(self) -> int:
        costs = self._costs()
        return 0 if costs is None else len(costs.group_of)


class PlanErrors(PlanFigures):
    """The relative error of the weights, √(Σ m Δw² / Σ m w²), as the type picker shows it."""

    def figure(self, costs: CostModel, op: TensorOp) -> float | None:
        found = costs.error(op.source, op.to_type)
        return None if found is None else math.sqrt(found)


class PlanShares(PlanFigures):
    """The tensor's share of the predicted KL divergence."""

    def figure(self, costs: CostModel, op: TensorOp) -> float | None:
        return costs.cost(op.source, op.to_type)


class Fragilities(Mapping[str, float]):
    """Tensor -> how fragile its kind is there in the depth, whatever the plan; empty while nothing is known."""

    def __init__(self, model: Model, costs: Costs) -> None:
        self._model, self._costs = model, costs
        self._known: tuple[CostModel, dict[str, float]] | None = None

    @property
    def _figures(self) -> dict[str, float]:
        costs = self._costs()
        if costs is None:
            return {}
        if self._known is None or self._known[0] is not costs:
            parts = {part.group: part.fragility for part in parts_of(self._model, costs)}
            found = {name: parts[group] for name, group in costs.group_of.items() if group in parts}
            self._known = costs, found
        return self._known[1]

    def __getitem__(self, name: str) -> float:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)
