"""Collecting, measuring, scanning, and the journal of trials."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.folders import state_folder
from surgeon.gguf.identity import model_identity
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.scratch import sweep
from surgeon.moments.files import beside, load_moments
from surgeon.plan.recipe import read_recipe
from surgeon.resolve.resolve import resolve
from surgeon.session.layer_figures import last_damages
from surgeon.trials.journal import Journal, Trial
from surgeon.trials.records import recipe_text, record, written_output
from surgeon.tui.answers import Answers, remember, remembered
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.journal import JournalDialog, Wish
from surgeon.tui.dialogs.measuring import MeasureDialog
from surgeon.tui.jobs.measuring import (
    CollectJob,
    Damaged,
    Ended,
    EvaluateJob,
    Grew,
    MeasureJob,
    ScanJob,
    Stood,
    engine_missing,
)
from surgeon.tui.jobs.writing import WriteJob, default_output
from surgeon.tui.workbench import Workbench
from surgeon.write.operation import Summary
from surgeon.write_guard import Kind, Permit, may_write

if TYPE_CHECKING:
    from surgeon.engine.protocol import Engine
    from surgeon.measure.evaluation import Subject

END_SECONDS = 3.0  # to wait at the end of the program for a child's end and its temporary files


class MeasureActions(Workbench):
    measure_job: MeasureJob | None = None

    @property
    def journal(self) -> Journal:
        """Raises SurgeonError where the state directory cannot be written."""
        return Journal.of_model(self.session.model.file.path)

    @property
    def engine(self) -> Engine:
        """How llama.cpp is run, from the command line and the config file."""
        from surgeon.engine.protocol import Engine

        config = self.app.config
        return Engine(config.llama_lib, config.threads, config.gpu_layers)

    # --- one run at a time

    async def _ready(self) -> bool:
        """Whether the engine is there and free; the run in hand is shown where it is not."""
        if self.measure_job is not None and self.measure_job.running:
            await self.ask(MeasureDialog(self.measure_job))
            return False
        missing = engine_missing(self.app.config.llama_lib)
        if missing:
            self.say(missing, "warning")
        return not missing

    def _begin(self, job: MeasureJob) -> None:
        if self.measure_job is not None and self.measure_job.running:
            self.say(f"{self.measure_job.title} is already running", "warning")
            return
        self.measure_job = job
        self._show_status(f"{job.word} …")
        self.app.push_screen(MeasureDialog(job))
        job.start(self.post_message)

    @on(Stood)
    def stood(self) -> None:
        job = self.measure_job
        if job is None or job.standing is None or not job.running:
            return
        self._show_status(f"{job.word} {100 * job.standing.part:.0f}%")
        self._redraw_dialog()

    @on(Ended)
    def ended(self, event: Ended) -> None:
        job = event.job
        self._show_status("")
        self.app.tell_of_end(job.began, job.news())
        if isinstance(job, CollectJob):
            self._collected(job)
        for screen in self.app.screen_stack:
            if isinstance(screen, JournalDialog):
                screen.edit(lambda: None)
        if self.app.leaving:
            self.app.stop_and_exit()
        elif self._redraw_dialog():
            return
        elif job.failure and not job.cancelled.is_set():
            self.app.push_screen(MeasureDialog(job))  # a line that goes after seconds would be missed
        else:
            self.say(f"{job.title}: {job.failure or 'done'}", "text" if job.failure else "accent")

    def _redraw_dialog(self) -> bool:
        """Whether the run's dialog is open, even below another."""
        shown = [screen for screen in self.app.screen_stack if isinstance(screen, MeasureDialog)]
        for dialog in shown:
            dialog.redraw()
        return bool(shown)

    def _show_status(self, text: str) -> None:
        """In the header, unless a write says there what it is at."""
        if self.app.job is None or not self.app.job.running:
            self.show_status(text)

    def redraw_part(self, name: str) -> None:
        self.query_one(f"#{name}").redraw()  # type: ignore[attr-defined]

    def on_unmount(self) -> None:
        if self.measure_job is not None and self.measure_job.running:
            self.measure_job.stop(END_SECONDS)

    # --- measuring

    async def action_evaluate(self) -> None:
        if self.session.resolution.errors:
            self.say("the plan cannot be written, so it cannot be measured; press ! for the reason", "warning")
            return
        if not await self._ready():
            return
        try:
            subject = self._plan_subject()
        except SurgeonError as error:
            self.fail(error)
            return
        await self._ask_evaluation(subject)

    async def _ask_evaluation(self, subject: Subject) -> None:
        from surgeon.tui.dialogs.measure_forms import evaluate_form

        model = self.session.model
        source = model.file.path

        def answered(answers: Answers | None) -> None:
            if answers is None:
                return
            remember(source, "evaluate", answers)
            try:
                self._evaluate(subject, answers)
            except SurgeonError as error:
                self.fail(error)

        known = remembered(source, "evaluate", ("what", "text", "chunks", "context", "tasks", "n_tasks"))
        await self.ask(evaluate_form(subject, model, known), answered)

    def _evaluate(self, subject: Subject, answers: Answers) -> None:
        from surgeon.folders import cache_folder
        from surgeon.measure.evaluation import Evaluation
        from surgeon.tui.dialogs.measure_forms import wanted_of

        evaluation = Evaluation(subject, wanted_of(answers), self.engine, self.journal, cache_folder())
        self._begin(EvaluateJob(evaluation))

    def _plan_subject(self) -> Subject:
        """The plan, or the file it was written to where that is still there."""
        from surgeon.measure.evaluation import Subject

        session = self.session
        recipe = recipe_text(session.plan, session.imatrix, session.moments)
        return Subject(
            label=default_output(session.resolution).stem,
            source=session.model.file.path,
            source_size=session.model.file.nbytes,
            recipe=recipe,
            resolution=session.resolution,
            imatrix=session.imatrix,
            output=written_output(self.journal, recipe),
        )

    def _trial_subject(self, trial: Trial) -> Subject:
        """A trial's file, or its plan where the file is gone. Raises SurgeonError where neither can be had."""
        from surgeon.measure.evaluation import Subject

        session = self.session
        source, size = session.model.file.path, session.model.file.nbytes
        output = Path(trial.output) if trial.output else None
        if output is not None and output.is_file() and model_identity(output) == trial.output_identity:
            return Subject(trial.label, source, size, trial.recipe, output=output)
        if not trial.recipe:
            raise SurgeonError(f"{trial.label}: its file is gone and its recipe is unknown")
        recipe = read_recipe(trial.recipe, Path("/"), trial.label)
        imatrix = load_imatrix(recipe.imatrix, judged=True) if recipe.imatrix else None
        moments = load_moments(recipe.moments) if recipe.moments else None
        resolution = resolve(session.model, recipe.plan, imatrix, moments)
        return Subject(trial.label, source, size, trial.recipe, resolution, imatrix)

    # --- the journal

    async def action_journal(self) -> None:
        try:
            journal = self.journal
            trials = journal.trials()
        except SurgeonError as error:
            self.fail(error)
            return
        await self.ask(JournalDialog(journal, trials, self.session.model.file.path), self._wished)

    def _wished(self, wish: Wish | None) -> None:
        if wish is None:
            return
        what, trial = wish
        if what == "restore":
            self.restore(trial)
        else:
            self.app.before_next_key(self._measure_trial(trial))

    def restore(self, trial: Trial) -> None:
        """The trial's plan, as one step that undo takes back."""

        def change() -> str:
            recipe = read_recipe(trial.recipe, Path("/"), trial.label)
            said = self.session.use_recipe(recipe, f"trial {trial.label}")
            return f"{said}: {figures.size(self.session.resolution.total_bytes)}; u undoes it"

        self.change_plan(change)

    async def _measure_trial(self, trial: Trial) -> None:
        if not await self._ready():
            return
        try:
            subject = self._trial_subject(trial)
        except SurgeonError as error:
            self.fail(error)
            return
        await self._ask_evaluation(subject)

    def record_write(self, job: WriteJob, summary: Summary) -> None:
        """A row for what was written; a journal that cannot be written costs a warning, not the output."""
        resolution = job.resolution
        try:
            recipe = recipe_text(resolution.plan, job.imatrix, resolution.moments)
            record(
                self.journal, summary.paths[0], summary.paths[0].stem, resolution=resolution,
                recipe=recipe, source_size=resolution.model.file.nbytes,
            )  # fmt: skip
        except SurgeonError as error:
            self.say(f"written, but the journal could not be updated: {error}", "warning")

    # --- collecting an importance matrix

    async def action_collect(self) -> None:
        from surgeon.tui.dialogs.measure_forms import collect_form, path_of

        if not await self._ready():
            return
        model = self.session.model
        source = model.file.path

        def answered(answers: Answers | None) -> None:
            if answers is None:
                return
            remember(source, "collect", answers)
            out = path_of(answers["out"])
            try:
                may_write(out, Kind.IMATRIX, Permit((*self.inputs, path_of(answers["text"])), replace=True))
            except SurgeonError as error:
                self.fail(error)
                return
            if not out.exists():
                self._collect(answers)
                return
            confirm = Confirm("replace", f"{out} already exists. Overwrite it?", "replace it")
            confirm.answered = lambda yes: self._collect(answers, replace=True) if yes else None
            self.app.push_screen(confirm)

        await self.ask(collect_form(model, remembered(source, "collect", ("text", "chunks", "context"))), answered)

    def _collect(self, answers: Answers, *, replace: bool = False) -> None:
        from surgeon.measure.imatrix_run import Collection
        from surgeon.measure.moments_run import MomentsCollection
        from surgeon.tui.dialogs.measure_forms import collect_job, path_of

        out = path_of(answers["out"])
        job = collect_job(answers, self.session.model.file.path)
        resume = "resume" in answers["how"].split()
        moments = MomentsCollection(beside(out), overwrite=True) if "moments" in answers["how"].split() else None
        wanted = Collection(job, out, dat=out.suffix == ".dat", resume=resume, overwrite=replace, moments=moments)
        self._begin(CollectJob(self.engine, wanted))

    @on(Grew)
    def grew(self, event: Grew) -> None:
        if self.measure_job is None or not self.measure_job.running:
            return
        self.session.show_statistics(event.rows, event.layers, event.influence)
        self.show_rows()

    def _collected(self, job: CollectJob) -> None:
        """Load what was collected, as `i` does; or show the plan's own statistics again."""
        if job.failure:
            self.session.measure()
            self.show_rows()
        else:
            self.change_plan(lambda: self.session.use_imatrix(job.collection.out))

    # --- prune-scan

    async def action_scan(self) -> None:
        from surgeon.tui.dialogs.measure_forms import scan_form

        if not await self._ready():
            return
        model = self.session.model
        source = model.file.path

        def answered(answers: Answers | None) -> None:
            if answers is None:
                return
            remember(source, "scan", answers)
            try:
                self._scan(answers)
            except (SurgeonError, OSError) as error:
                self.say(str(error), "pruned")

        await self.ask(scan_form(model, remembered(source, "scan", ("text", "chunks", "context"))), answered)

    def _scan(self, answers: Answers) -> None:
        from surgeon.engine.protocol import PruneScanJob
        from surgeon.measure.prune_scan import PruneScan
        from surgeon.tui.dialogs.measure_forms import number_of, path_of

        model, text = self.session.model, path_of(answers["text"])
        n_ctx, n_chunks = number_of(answers, "context", 512, 8), number_of(answers, "chunks", 4, 1)
        sets = [[layer.index] for layer in model.layers]
        job = PruneScanJob(str(model.file.path), str(text), sets, n_ctx, n_chunks=n_chunks)
        digest = hashlib.sha256(text.read_bytes()).hexdigest()[:16]
        # As `surgeon prune-scan` calls it, so that either goes on with what the other measured.
        identity = f"{model_identity(model.file.path)}-{digest}-c{n_ctx}-n{n_chunks}"
        scan = PruneScan(self.engine, job, state_folder() / "prune-scan" / f"{identity}.json", identity)
        scan.load()
        self.session.damages.clear()
        self._begin(ScanJob(scan))

    @on(Damaged)
    def damaged(self, event: Damaged) -> None:
        if len(event.damage.layers) == 1:
            self.session.damages[event.damage.layers[0]] = event.damage.mean_kld
            self.session.measurements.forget_scales()
            self.show_rows()

    def tidy(self) -> None:
        """Remove the temporary files of a run that was killed with its program."""
        from surgeon.folders import cache_folder

        with suppress(SurgeonError):  # without a cache folder there is nothing in it
            sweep(cache_folder())

    def load_damages(self) -> None:
        """What the last scan of this model found."""
        try:
            folder, identity = state_folder() / "prune-scan", model_identity(self.session.model.file.path)
        except SurgeonError:
            return  # no state directory: there is no scan either
        found = last_damages(folder, identity)
        if found:
            self.session.damages.update(found)
            self.session.measurements.forget_scales()
            self.show_rows()
