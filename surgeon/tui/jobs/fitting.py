"""Measuring the sensitivities behind the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon.measure.progress import Standing
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.measuring import MeasureJob

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.fit.cost_model import CostModel
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.measure.sensitivities import Sensitivities


class Learned(Message):
    """What types cost, measured with this importance matrix."""

    def __init__(self, costs: CostModel, imatrix: Imatrix | None) -> None:
        super().__init__()
        self.costs, self.imatrix = costs, imatrix


class SensitivityJob(MeasureJob):
    """Measures how much each part of the model matters."""

    title, word = "measure sensitivities", "sensitivities"

    def __init__(self, sensitivities: Sensitivities) -> None:
        super().__init__()
        self.sensitivities = sensitivities
        sensitivities.prober.cancelled = self.cancelled

    def items(self) -> Iterator[Standing | Message]:
        yield from self.sensitivities.steps()
        yield Learned(self.sensitivities.costs(), self.sensitivities.prober.imatrix)

    def engine_run(self) -> EngineRun | None:
        return self.sensitivities.prober.run

    def kept(self) -> str:
        done = len(self.sensitivities.probes)
        return f"{done} probes measured and kept; F resumes" if done else ""

    def result(self) -> list[Line]:
        """The groups that matter most."""
        costs = self.sensitivities.costs()
        ranked = sorted(costs.curves.items(), key=lambda item: -item[1].scale)
        lines: list[Line] = [[("measured ", "good"), (f"{len(ranked)} groups; the most fragile:", "text")]]
        for group, curve in ranked[:5]:
            lines.append([(f"{clean(group):<18}", "text"), (f"KLD {curve.scale:.4f} per unit of error", "muted")])
        return [*lines, [("F chooses a size", "accent")]]
