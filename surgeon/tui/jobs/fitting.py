"""Measuring the sensitivities behind the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon.figures import counted, divergence
from surgeon.fit.fragility import parts_of, types_of, weights_unit
from surgeon.measure.progress import Standing
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.workers import Workers

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.fit.cost_model import CostModel
    from surgeon.fleet.cluster import Fleet
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.probing import Prober


class Learned(Message):
    """What types cost, measured with this prober's importance matrix and encoder."""

    def __init__(self, costs: CostModel, prober: Prober) -> None:
        super().__init__()
        self.costs, self.prober = costs, prober


class SensitivityJob(MeasureJob):
    """Measures how much each part of the model matters."""

    title, word = "measure sensitivities", "sensitivities"

    def __init__(self, sensitivities: Sensitivities, workers: Workers | None = None) -> None:
        super().__init__(workers)
        self.sensitivities = sensitivities
        sensitivities.prober.cancelled = self.cancelled

    def use(self, fleet: Fleet) -> None:
        from surgeon.fleet.probes import FleetProber

        self.sensitivities.prober = FleetProber.of(self.sensitivities.prober, fleet)

    def items(self) -> Iterator[Standing | Message]:
        yield from self.sensitivities.steps()
        yield Learned(self.sensitivities.costs(), self.sensitivities.prober)

    def engine_run(self) -> EngineRun | None:
        return self.sensitivities.prober.run

    def kept(self) -> str:
        done = len(self.sensitivities.probes)
        return f"{counted(done, 'probe')} measured and kept; F resumes" if done else ""

    def result(self) -> list[Line]:
        """The parts that matter most."""
        parts = parts_of(self.sensitivities.prober.model, self.sensitivities.costs())
        ranked = sorted(parts, key=lambda part: -part.fragility)
        lines: list[Line] = [[("measured ", "good"), (f"{len(ranked)} parts; the most fragile:", "text")]]
        weights, unit = weights_unit(parts)
        for part in ranked[:5]:
            where = f"layers {part.layers}: " if part.layers else ""
            said = f"{where}KLD {divergence(unit * part.fragility)} per {weights} weights at {types_of(part.low)}"
            lines.append([(f"{clean(part.kind):<14}", "text"), (said, "muted")])
        return [*lines, [("F chooses a size", "accent")]]
