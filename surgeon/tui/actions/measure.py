"""Collecting, measuring, scanning."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.folders import state_folder
from surgeon.gguf.identity import open_identity
from surgeon.measure.scratch import sweep
from surgeon.moments.files import beside
from surgeon.plan.plan import DEFAULT_SETTINGS, WriteSettings
from surgeon.plan.recipe import read_recipe
from surgeon.session.kept_plans import resolved_recipe, use_recipe
from surgeon.session.layer_figures import last_damages
from surgeon.session.queue import Entry as Queued
from surgeon.trials.journal import Journal, Trial
from surgeon.trials.records import output_of, recipe_text, record, written_output
from surgeon.tui.actions.queueing import QueueingActions
from surgeon.tui.answers import Answers, remembered
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.running.measuring import MeasureDialog
from surgeon.tui.jobs.collecting import CollectJob, Grew
from surgeon.tui.jobs.evaluating import EvaluateJob
from surgeon.tui.jobs.measuring import Ended, MeasureJob, Stood, engine_missing
from surgeon.tui.jobs.scanning import Damaged, ScanJob
from surgeon.tui.jobs.workers import Workers, with_workers
from surgeon.tui.jobs.writing import WriteJob, default_output
from surgeon.write.operation import Summary
from surgeon.write_guard import Kind, Permit, may_write

if TYPE_CHECKING:
    from surgeon.engine.protocol import Engine
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.measure.evaluation import Subject
    from surgeon.resolve.resolution import Resolution
    from surgeon.tui.dialogs.forms.measure_forms import Ground

ASKED = ("what", "text", "chunks", "context", "tasks", "n_tasks")  # of a measurement, for any model
END_SECONDS = 3.0  # to wait at the end of the program for a child's end and its temporary files


class MeasureActions(QueueingActions):
    measure_job: MeasureJob | None = None

    @abstractmethod
    def show_running(self) -> None:
        """Where the bench is open: how far what the queue runs is."""

    @abstractmethod
    def job_ended(self, job: MeasureJob | WriteJob) -> bool:
        """Whether the job was of the queue, which goes on."""

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

    @property
    def fleet_workers(self) -> Workers:
        """Of the scheduler that the command line or the config file names."""
        from surgeon.fleet.settings import NONE, scheduler_address

        return Workers(scheduler_address(self.app.config.scheduler or NONE), self.engine)

    @property
    def ground(self) -> Ground:
        """What forms reckon with; of workers no speed is known."""
        from surgeon.folders import cache_folder
        from surgeon.measure.speeds import Speeds
        from surgeon.tui.dialogs.forms.measure_forms import Ground

        engine, here = self.engine, self.fleet_workers.address is None
        try:
            cache = cache_folder()
        except SurgeonError:  # the run itself says so
            cache = Path(tempfile.gettempdir())
        return Ground(engine, cache, Speeds.of(self.session.model.file.path, engine) if here else Speeds())

    # --- one run at a time

    def _ready(self) -> bool:
        """Whether the engine is there; a line says why not."""
        missing = engine_missing(self.app.config.llama_lib)
        if missing:
            self.say(missing, "warning")
        return not missing

    def _begin(self, job: MeasureJob, *, seen: bool = True) -> None:
        """seen: with its dialog."""
        self.measure_job = job
        self._show_status(f"{job.word} …")
        if seen:
            self.app.push_screen(MeasureDialog(job, self.take_choice))
        job.start(self.post_message)

    @on(Stood)
    def stood(self) -> None:
        job = self.measure_job
        if job is None or job.standing is None or not job.running:
            return
        self._show_status(with_workers(f"{job.word} {100 * job.standing.of_all:.0f}%", job.workers.standing))
        self.show_running()
        self._redraw_dialog()

    @on(Ended)
    def ended(self, event: Ended) -> None:
        job = event.job
        self._show_status("")
        self.app.tell_of_end(job.began, job.news())
        if isinstance(job, CollectJob):
            self._collected(job)
        if self.app.leaving:
            self.app.stop_and_exit()
            return
        queued = self.job_ended(job)
        if self._redraw_dialog():
            return
        if job.failure and not job.cancelled.is_set() and not queued:
            self.app.push_screen(MeasureDialog(job, self.take_choice))  # a line that goes after seconds would be missed
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

    def on_unmount(self) -> None:
        if self.measure_job is not None and self.measure_job.running:
            self.measure_job.stop(END_SECONDS)

    # --- measuring

    async def action_evaluate(self) -> None:
        if self.session.resolution.errors:
            self.say("the plan cannot be written, so it cannot be measured; press ! for the reason", "warning")
            return
        if not self._ready():
            return
        recipe = self.own_recipe()
        if recipe is not None:
            title = default_output(self.session.resolution).stem
            await self.ask_evaluation(Queued("evaluate", title, recipe=recipe))

    def own_recipe(self, settings: WriteSettings = DEFAULT_SETTINGS) -> str | None:
        """The plan as a recipe; None, and a line that says why, where it cannot be one."""
        session = self.session
        try:
            return recipe_text(session.plan, session.imatrix, session.moments, settings)
        except SurgeonError as error:
            self.fail(error)
            return None

    async def measure_trial(self, trial: Trial) -> None:
        if self._ready():
            await self.ask_evaluation(Queued("evaluate", trial.label, {"trial": trial.id}, trial.recipe))

    async def ask_evaluation(self, entry: Queued) -> None:
        from surgeon.tui.dialogs.forms.measure_forms import evaluate_form

        model = self.session.model
        try:
            subject = self.subject_of(entry)
        except SurgeonError as error:
            self.fail(error)
            return
        await self.offer(evaluate_form(subject, model, self.asked_last, self.ground), entry)

    @property
    def asked_last(self) -> Answers:
        """What was measured the last time, and on what."""
        return remembered(self.session.model.file.path, "evaluate", ASKED)

    def evaluate_job(self, entry: Queued) -> EvaluateJob:
        from surgeon.folders import cache_folder
        from surgeon.measure.evaluation import Evaluation
        from surgeon.tui.dialogs.forms.measure_forms import wanted_of

        subject, wanted = self.subject_of(entry), wanted_of(dict(entry.answers))
        evaluation = Evaluation(subject, wanted, self.engine, self.journal, cache_folder())
        return EvaluateJob(evaluation, self.fleet_workers)

    def subject_of(self, entry: Queued) -> Subject:
        """A file somebody made, a trial, or a plan (its file where it was written). Raises SurgeonError."""
        from surgeon.measure.evaluation import Subject

        source, size = self.session.model.file.path, self.session.model.file.nbytes
        if reference := entry.answers.get("file"):
            return Subject(entry.title, source, size, output=Path(reference))
        if name := entry.answers.get("trial"):
            trial = next((trial for trial in self.journal.trials() if trial.id == name), None)
            output = output_of(trial) if trial is not None else None
            if trial is not None and output is not None:
                return Subject(trial.label, source, size, trial.recipe, output=output)
            if not entry.recipe:
                raise SurgeonError(f"{entry.title}: its file is gone and its recipe is unknown")
        resolution, imatrix = self.resolved(entry)
        output = written_output(self.journal, entry.recipe)
        return Subject(entry.title, source, size, entry.recipe, resolution, imatrix, output)

    def resolved(self, entry: Queued) -> tuple[Resolution, Imatrix | None]:
        """What the recipe of an entry comes to, with its importance matrix. Raises SurgeonError."""
        session = self.session
        if entry.recipe == recipe_text(session.plan, session.imatrix, session.moments):
            return session.resolution, session.imatrix
        return resolved_recipe(session, read_recipe(entry.recipe, Path("/"), entry.title))

    def restore(self, trial: Trial) -> None:
        """The trial's plan, as one step that undo takes back."""

        def change() -> str:
            recipe = replace(read_recipe(trial.recipe, Path("/"), trial.label), settings=self.session.settings)
            said = use_recipe(self.session, recipe, f"trial {trial.label}")
            return f"{said}: {figures.size(self.session.resolution.total_bytes)}; u undoes it"

        self.change_plan(change)

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
        from surgeon.tui.dialogs.forms.measure_forms import collect_form

        if not self._ready():
            return
        model = self.session.model
        form = collect_form(model, remembered(model.file.path, "collect", ("text", "chunks", "context")), self.ground)
        await self.offer(form, Queued("collect", model.file.path.name), before=self._before_collecting)

    def _before_collecting(self, answers: Answers, go_on: Callable[[Answers], None]) -> None:
        """Ask before a file is replaced."""
        from surgeon.tui.dialogs.forms.measure_forms import path_of

        out = path_of(answers["out"])
        try:
            may_write(out, Kind.IMATRIX, Permit((*self.inputs, path_of(answers["text"])), replace=True))
        except SurgeonError as error:
            self.fail(error)
            return
        if not out.exists():
            go_on(answers)
            return
        confirm = Confirm("replace", f"{out} already exists. Overwrite it?", "replace it")
        confirm.answered = lambda yes: go_on({**answers, "replace": "yes"}) if yes else None
        self.app.push_screen(confirm)

    def collect_job(self, entry: Queued) -> CollectJob:
        from surgeon.measure.collecting.imatrix_run import Collection
        from surgeon.measure.collecting.moments_run import MomentsCollection
        from surgeon.tui.dialogs.forms.measure_forms import collect_job, path_of

        answers = dict(entry.answers)
        out, how = path_of(answers["out"]), answers["how"].split()
        moments = MomentsCollection(beside(out), overwrite=True) if "moments" in how else None
        wanted = Collection(
            collect_job(answers, self.session.model.file.path), out, dat=out.suffix == ".dat",
            resume="resume" in how, overwrite=answers.get("replace") == "yes", moments=moments,
        )  # fmt: skip
        return CollectJob(self.engine, wanted, self.fleet_workers)

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
        from surgeon.tui.dialogs.forms.measure_forms import scan_form

        if not self._ready():
            return
        model = self.session.model
        form = scan_form(
            model, remembered(model.file.path, "scan", ("text", "chunks", "context", "count", "how")), self.ground
        )
        await self.offer(form, Queued("scan", model.file.path.name))

    def scan_job(self, entry: Queued) -> ScanJob:
        from surgeon.measure.scans.prune_choice import PruneChoice
        from surgeon.measure.scans.prune_scan import open_scan
        from surgeon.tui.dialogs.forms.measure_forms import count_of, scan_job

        answers, model = dict(entry.answers), self.session.model
        scan = open_scan(self.engine, model, scan_job(model, answers))
        if not scan.job.n_fit:  # of a healed scan the figures are others than those the tree shows
            self.session.damages.clear()
        count, order = count_of(model, answers)
        choice = PruneChoice(scan, order, count, model.block_count) if count else None
        return ScanJob(scan, choice, self.fleet_workers)

    def take_choice(self, layers: tuple[int, ...]) -> None:
        """Prune the layers that a scan has chosen, and bring back others, as one step."""
        self.change_plan(lambda: self.session.set_pruned(layers))

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
            folder, identity = state_folder() / "prune-scan", open_identity(self.session.model.file)
        except SurgeonError:
            return  # no state directory: there is no scan either
        found = last_damages(folder, identity)
        if found:
            self.session.damages.update(found)
            self.session.measurements.forget_scales()
            self.show_rows()
