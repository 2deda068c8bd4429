"""L: the bench, and the queue that goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.gguf.file import shards_of
from surgeon.json_text import read_json
from surgeon.session.queue import DONE, FAILED, RUNNING, WAITING, Entry
from surgeon.trials.journal import Trial
from surgeon.trials.tables import markdown
from surgeon.tui.actions.file import FileActions
from surgeon.tui.actions.fit import FitActions
from surgeon.tui.actions.heal import HealActions
from surgeon.tui.actions.measure import ASKED
from surgeon.tui.answers import Answers, remember, remembered
from surgeon.tui.dialogs.bench.page import BenchPage
from surgeon.tui.dialogs.bench.queue_keys import Wish
from surgeon.tui.dialogs.forms.form import Form
from surgeon.tui.dialogs.running.measuring import MeasureDialog
from surgeon.tui.dialogs.running.progress import ProgressDialog
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.workers import with_workers
from surgeon.tui.jobs.writing import WriteJob
from surgeon.whole_files import write_whole
from surgeon.write_guard import Permit


class BenchActions(FileActions, FitActions, HealActions):
    queued_job: tuple[str, MeasureJob | WriteJob] | None = None
    """Id of the entry that runs, and its job."""

    async def action_bench(self) -> None:
        try:
            journal = self.journal
            trials = journal.trials()
        except SurgeonError as error:
            self.fail(error)
            return
        await self.ask(BenchPage(self, journal, trials, self.session.model.file.path), self._wished)

    def _wished(self, wish: Wish | None) -> None:
        if wish is None:
            return
        if wish[0] == "running":
            self._show_running()
        elif wish[0] == "restore":
            self.restore(wish[1])
        elif wish[0] == "map":
            self._compare_on_map(wish[1])
        else:
            self.app.before_next_key(self.measure_trial(wish[1]))

    def _show_running(self) -> None:
        job = self.queued_job[1] if self.queued_job is not None else None
        if isinstance(job, WriteJob):
            self.app.push_screen(ProgressDialog(job))
        elif job is not None:
            self.app.push_screen(MeasureDialog(job, self.take_choice))

    def _compare_on_map(self, trial: Trial) -> None:
        """The map with the trial's types beside the plan's."""
        try:
            resolution, _ = self.resolved(Entry("evaluate", trial.label, recipe=trial.recipe))
        except SurgeonError as error:
            self.fail(error)
            return
        self.compared[trial.label] = {op.source: op.to_type for op in resolution.ops if op.action != "drop"}
        self.app.before_next_key(self.run_action("map('change')"))

    def tell_of_queue(self) -> None:
        """At the start: what the last session left undone."""
        waits = len(self.queue.waiting)
        if waits:
            jobs = "1 queued job is" if waits == 1 else f"{waits} queued jobs are"
            self.say(f"{jobs} left from the last session; L shows them, P resumes")

    # --- what the bench asks for

    def matrix_form(self) -> Form:
        """As answered the last time; before the first, as a single plan was measured the last time, and KLD."""
        from surgeon.tui.dialogs.bench.matrix_form import matrix_form

        first = {name: answer for name, answer in self.asked_last.items() if name in ASKED}
        first["what"] = f"write kld {first.get('what', '')}"
        known = remembered(self.session.model.file.path, "matrix", ("types", *ASKED))
        return matrix_form(self.session, first | known)

    def add_matrix(self, answers: Answers) -> None:
        from surgeon.tui.dialogs.bench.matrix_form import matrix_entries, runs_of

        remember(self.session.model.file.path, "matrix", answers)
        try:
            self.enqueue(*matrix_entries(runs_of(self.session, answers["types"]), answers))
        except SurgeonError as error:
            self.fail(error)

    def reference_form(self, path: Path) -> Form:
        from surgeon.tui.dialogs.forms.measure_forms import evaluate_form

        entry = Entry("evaluate", path.stem, {"file": str(path)})
        form = evaluate_form(self.subject_of(entry), self.session.model, self.asked_last, self.ground)
        form.do = "queue"
        return form

    def add_reference(self, path: Path, answers: Answers) -> None:
        remember(self.session.model.file.path, "evaluate", answers)
        self.enqueue(Entry("evaluate", path.stem, {**answers, "file": str(path)}))

    # --- the queue goes on

    @property
    def queue_status(self) -> str:
        job = self.queued_job[1] if self.queued_job is not None else None
        if isinstance(job, MeasureJob) and job.standing is not None:
            return with_workers(
                f"{100 * job.standing.part:.0f}% of {job.standing.stage}", job.workers.standing, first=True
            )
        if isinstance(job, WriteJob) and job.progress is not None and job.progress.total_bytes:
            part = job.progress.done_bytes / job.progress.total_bytes
            return with_workers(f"{100 * part:.0f}% written", job.workers.standing, first=True)
        return ""

    def job_of(self, entry: Entry) -> MeasureJob | WriteJob:
        """The work of an entry. Raises SurgeonError, OSError."""
        makers: dict[str, Callable[[Entry], MeasureJob | WriteJob]] = {
            "write": self.write_job,
            "evaluate": self.evaluate_job,
            "collect": self.collect_job,
            "sensitivities": self.sensitivity_job,
            "scan": self.scan_job,
            "heal": self.heal_job,
        }
        return makers[entry.kind](entry)

    def begin(self, entry: Entry, *, seen: bool = True) -> None:
        job = self.job_of(entry)
        if isinstance(job, MeasureJob):
            self._begin(job, seen=seen)
        else:
            self.begin_write(job, seen=seen)
        if not seen:
            self.queued_job = (entry.id, job)

    def begin_next(self) -> None:
        """One entry after the other until one takes its time."""
        while not self.app.running_jobs and not self.app.leaving and (entry := self.queue.next) is not None:
            try:
                if entry.kind == "card":
                    self._mark(entry.id, DONE, self._make_card(entry))
                    continue
                self._mark(entry.id, RUNNING)
                self.begin(entry, seen=False)
            except (SurgeonError, OSError) as error:
                self._mark(entry.id, FAILED, str(error))
            except (LookupError, TypeError, ValueError) as error:  # answers of another version, kept from then
                self._mark(entry.id, FAILED, f"cannot be begun ({type(error).__name__}: {error}); queue it anew")
        self.show_bench()

    def job_ended(self, job: MeasureJob | WriteJob) -> bool:
        queued = self.queued_job is not None and self.queued_job[1] is job
        if self.queued_job is not None and queued:
            name, self.queued_job = self.queued_job[0], None
            if job.cancelled.is_set():  # x: it waits, and so do the others
                self.queue.pause(True)
                self._mark(name, WAITING, job.failure)
            else:
                self._mark(name, FAILED if job.failure else DONE, job.failure or self._news(job))
        self.show_bench(reload=True)
        self.app.begin_queues()
        return queued

    def _news(self, job: MeasureJob | WriteJob) -> str:
        if isinstance(job, WriteJob):
            return f"{figures.size(job.summary.nbytes)}, {job.out}" if job.summary is not None else ""
        return job.news()

    def _mark(self, name: str, state: str, note: str = "") -> None:
        try:
            self.queue.mark(name, state, note)
        except SurgeonError as error:
            self.say(str(error), "warning")

    def show_running(self) -> None:
        for screen in self.app.screen_stack:
            if isinstance(screen, BenchPage) and screen.is_mounted:
                screen.show_running()

    def show_bench(self, *, reload: bool = False) -> None:
        """Where the bench is open: the queue as it is; reload: the trials, too."""
        for screen in self.app.screen_stack:
            if isinstance(screen, BenchPage) and screen.is_mounted:
                if reload:
                    screen.edit(lambda: None)
                screen.show_queue()

    def _make_card(self, entry: Entry) -> str:
        """The tables of the matrix's trials, with the unchanged model; a file that is there is not replaced."""
        from surgeon.tui.dialogs.bench.matrix_form import free_name
        from surgeon.tui.dialogs.forms.measure_forms import path_of

        wanted = read_json(entry.answers["recipes"])
        trials = self.journal.trials()
        newest = {trial.recipe: trial for trial in trials}
        rows = [newest[recipe] for recipe in wanted if recipe in newest]
        if not rows:
            raise SurgeonError("nothing of this matrix was measured: there is nothing for a card")
        unchanged = [trial for trial in trials if trial.label.endswith("(unchanged)")][-1:]
        references = [trial for trial in trials if not trial.recipe and trial not in unchanged]
        path = free_name(path_of(entry.answers["card"]))
        inputs = (*shards_of(self.session.model.file.path), *self.journal.files)
        write_whole(path, markdown([*unchanged, *rows, *references]), permit=Permit(inputs))
        return str(path)
