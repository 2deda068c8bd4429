"""F: the types that lose least within a size."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from textual import on

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.session.queue import Entry as Queued
from surgeon.tui.actions.measure import MeasureActions
from surgeon.tui.answers import remembered
from surgeon.tui.jobs.fitting import Learned, SensitivityJob

if TYPE_CHECKING:
    from surgeon.fit.allocation import Fit
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.probing import Prober
    from surgeon.tui.answers import Answers


class FitActions(MeasureActions):
    async def action_fit(self) -> None:
        from surgeon.fit.allocation import refuse_unfit

        plan = self.session.plan
        if plan.pruned or plan.pruned_experts or plan.healing is not None:
            self.say("fit works on whole models: write the pruned one (w) and open that", "warning")
            return
        try:
            refuse_unfit(plan)
        except SurgeonError as error:
            self.fail(error)
            return
        self.load_costs()
        if self.session.costs is None:
            await self._ask_text()
        else:
            await self._choose_size()

    async def _ask_text(self) -> None:
        """What matters is measured first, once."""
        from surgeon.tui.dialogs.forms.measure_forms import fit_form

        if not self._ready():
            return
        model = self.session.model
        answers = remembered(model.file.path, "sensitivities", ("text", "chunks", "context"))
        form = fit_form(model, answers, self.ground, self._sensitivities)
        await self.offer(form, Queued("sensitivities", model.file.path.name))

    def sensitivity_job(self, entry: Queued) -> SensitivityJob:
        return SensitivityJob(self._sensitivities(dict(entry.answers)), self.fleet_workers)

    def _sensitivities(self, answers: Answers) -> Sensitivities:
        from surgeon.measure.fitting.sensitivities import Sensitivities
        from surgeon.measure.probing import Text
        from surgeon.tui.dialogs.forms.measure_forms import number_of, path_of

        n_ctx, n_chunks = number_of(answers, "context", 512, 8), number_of(answers, "chunks", 4, 1)
        text = Text(path_of(answers["text"]), n_ctx, n_chunks)
        return Sensitivities(self._prober(), text)

    def _prober(self) -> Prober:
        from surgeon.measure.probing import Prober

        session, plan = self.session, self.session.plan
        return Prober(session.model, session.imatrix, self.engine, session.moments, plan.shrink, plan.feedback_rounds)

    @on(Learned)
    def learned(self, event: Learned) -> None:
        if event.prober.imatrix is self.session.imatrix:
            self.session.use_costs(event.costs)
            self.show_rows()

    async def _choose_size(self) -> None:
        from surgeon.fit.allocation import Allocator
        from surgeon.trials.records import is_unchanged
        from surgeon.trials.tables import measured_alike
        from surgeon.tui.dialogs.views.fit import FitDialog

        session = self.session
        assert session.costs is not None  # action_fit looked
        try:
            allocator = Allocator(session.model, session.plan, session.imatrix, session.costs, moments=session.moments)
            trials = self.journal.trials()
        except SurgeonError as error:
            self.fail(error)
            return
        alike = measured_alike(trials)
        shown = [trial for trial in trials if trial.id in alike]
        # A model as it is has nothing to gain; 4.5 bits per weight is where most are looked for.
        start = allocator.bytes_at(4.5) if is_unchanged(session.plan) else session.resolution.total_bytes
        await self.ask(FitDialog(allocator, start, shown), self._fitted)

    def _fitted(self, fit: Fit | None) -> None:
        if fit is None:
            return

        def change() -> str:
            nbytes = figures.size(fit.resolution.total_bytes)
            self.session.change(fit.plan, f"fit {nbytes}")
            return f"fit: {nbytes}, predicted KLD {fit.predicted.kld:.4f}; u undoes it"

        self.change_plan(change)

    def load_costs(self) -> None:
        """What was measured before with this importance matrix and encoder, on whatever text."""
        if self.session.costs is not None:
            return
        from surgeon.measure.fitting.sensitivities import newest_costs

        with suppress(SurgeonError):  # without a state folder nothing was measured
            costs = newest_costs(self._prober())
            if costs is not None:
                self.session.use_costs(costs)
