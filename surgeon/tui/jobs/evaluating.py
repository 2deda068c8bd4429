"""Measuring a plan or a file behind the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon import figures
from surgeon.measure.progress import Standing
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.workers import Workers

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.fleet.cluster import Fleet
    from surgeon.measure.evaluation import Evaluation


class EvaluateJob(MeasureJob):
    """Measures a plan or a file; its figures are in the journal when it ends."""

    title, word = "measure", "measuring"

    def __init__(self, evaluation: Evaluation, workers: Workers | None = None) -> None:
        super().__init__(workers)
        self.evaluation = evaluation
        evaluation.cancelled = self.cancelled

    def use(self, fleet: Fleet) -> None:
        from surgeon.fleet.evaluation import FleetEvaluator

        self.evaluation.elsewhere = FleetEvaluator(fleet)

    def items(self) -> Iterator[Standing | Message]:
        yield from self.evaluation.steps()

    def engine_run(self) -> EngineRun | None:
        return self.evaluation.run

    def kept(self) -> str:
        return "what was measured is in the journal" if self.evaluation.trial else "no temporary file is left"

    def news(self) -> str:
        trial = self.evaluation.trial
        if trial is None or self.failure:
            return super().news()
        kld, ppl = trial.figure("mean_kld"), trial.figure("ppl")
        figure = (
            f"KLD {figures.divergence(kld)}" if kld is not None else f"PPL {ppl:.4f}" if ppl is not None else "measured"
        )
        return f"{figure} · {trial.label}"

    def result(self) -> list[Line]:
        from surgeon.tui.drawing.trial_lines import figure_lines

        trial = self.evaluation.trial
        return [] if trial is None else [[(clean(trial.label), "strong")], *figure_lines(trial)]
