"""What the plan costs, tensor by tensor, from the sensitivities of the model: errors and predicted divergence."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping

from surgeon.fit.cost_model import CostModel
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
