"""Importance matrices, recipes, the write, and leaving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.llama_quantize.translation import export, from_command, from_model
from surgeon.measure.difference import difference
from surgeon.measure.speeds import encoding
from surgeon.model.model import load_model
from surgeon.plan.recipe import Recipe, load_recipe, read_recipe, save_recipe
from surgeon.session.kept_plans import recipe_of, use_recipe
from surgeon.session.queue import Entry as Queued
from surgeon.session.typed_edits import command_in, is_quantize_command
from surgeon.trials.records import recipe_text
from surgeon.tui.actions.measure import MeasureActions
from surgeon.tui.dialogs.command import CommandReader
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.forms.write import Destination, WriteDialog
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.running.progress import ProgressDialog
from surgeon.tui.dialogs.views.difference import DifferenceReader
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.converting import ConversionJob
from surgeon.tui.jobs.writing import WriteJob, default_output
from surgeon.tui.unfinished import forget, job_of, unfinished
from surgeon.write.conversion import Conversion, check, is_checkpoint
from surgeon.write.operation import WriteOptions
from surgeon.write_guard import Kind, Permit, may_write


class FileActions(MeasureActions):
    last_out: Path | None = None

    @property
    def folder(self) -> str:
        return f"{self.session.model.file.path.absolute().parent}/"

    # --- importance matrix and recipes

    async def action_imatrix(self) -> None:
        prompt = Prompt(
            "importance matrix",
            existing_file,
            value=self.folder,
            hint="GGUF or .dat · Tab complete · ↑ earlier",
            endings=(".gguf", ".dat", ".imatrix"),
        )
        await self.ask(prompt, self.apply_imatrix)

    def apply_imatrix(self, text: str | None) -> None:
        if text is not None:
            self.change_plan(lambda: self.session.use_imatrix(Path(text).expanduser()))

    async def action_save(self) -> None:
        default = self.session.model.file.path.absolute().with_suffix(".recipe.toml")
        hint = "Enter save · Tab complete · ↑ earlier"
        prompt = Prompt("save recipe", writable_file, value=str(default), hint=hint, endings=(".toml",))
        await self.ask(prompt, self._save)

    def _save(self, text: str | None) -> None:
        if text is None:
            return
        path = Path(text).expanduser()
        try:
            may_write(path, Kind.TEXT, Permit(self.inputs, replace=True))
        except SurgeonError as error:
            self.fail(error)
            return
        if path.exists():
            confirm = Confirm("replace", f"{path} already exists. Overwrite it?", "replace it")
            confirm.answered = lambda yes: self.save_to(path, replace=True) if yes else None
            self.app.push_screen(confirm)
        else:
            self.save_to(path)

    def save_to(self, path: Path, *, replace: bool = False) -> None:
        try:
            save_recipe(recipe_of(self.session), path, Permit(self.inputs, replace=replace))
        except SurgeonError as error:
            self.fail(error)
        else:
            self.say(f"saved {path}")

    async def action_load(self) -> None:
        prompt = Prompt(
            "load recipe",
            file_or_checkpoint,
            value=self.folder,
            hint="recipe, llama-quantize command, GGUF, checkpoint · Tab · ↑ earlier",
            endings=(".toml", ".gguf", ".sh", ".txt"),
        )
        await self.ask(prompt, self.apply_recipe)

    def apply_recipe(self, text: str | None) -> None:
        if text is None:
            return
        path = Path(text).expanduser()
        if path.is_dir():
            self.offer_conversion(path)
            return

        def change() -> str:
            session, recipe = self.session, recipe_in(path)
            if path.suffix != ".gguf":
                return use_recipe(session, recipe, f"recipe {path.name}")
            # A model's types say nothing of the imatrix, the second moments and how to write: they stay.
            now = session.plan
            plan = replace(recipe.plan, imatrix_file=now.imatrix_file, moments_file=now.moments_file)
            recipe = replace(recipe, plan=plan, settings=session.settings)
            return use_recipe(session, recipe, f"types of {path.name}")

        self.change_plan(change)

    def offer_conversion(self, folder: Path) -> None:
        """Ask whether to convert a checkpoint; say what is in the way where it cannot be."""
        wanted = Conversion(folder)
        try:
            check(wanted)
            may_write(wanted.target, Kind.MODEL, Permit())
            size = figures.size(wanted.estimated_bytes)
        except SurgeonError as error:
            self.fail(error)
            return
        if self.measure_job is not None and self.measure_job.running:
            self.say(f"{self.measure_job.doing}: convert when it has ended, or x stops it", "warning")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._begin(ConversionJob(wanted))

        confirm = Confirm("convert", f"{folder} is a checkpoint. Convert it to {wanted.target} ({size})?", "convert it")
        confirm.answered = answered
        self.app.push_screen(confirm)

    async def action_compare(self) -> None:
        prompt = Prompt(
            "compare with",
            existing_file,
            value=self._other_model or self.folder,
            hint="another GGUF · Tab complete · ↑ earlier",
            endings=(".gguf",),
        )
        await self.ask(prompt, self.compare_with)

    @property
    def _other_model(self) -> str:
        """Path of another open model, '' without one."""
        return next((str(path.absolute()) for path in self.app.other_models), "")

    def compare_with(self, text: str | None) -> None:
        """Show what another GGUF differs in; its types can then be compared with on the map."""
        if text is None:
            return
        try:
            other = load_model(Path(text).expanduser())
        except SurgeonError as error:
            self.fail(error)
            return
        self.take_for_comparison(other)
        reader = DifferenceReader(
            difference(self.session.model, other),
            show_on_map=lambda: self.app.before_next_key(self.run_action("map('change')")),
            take_types=lambda: self.apply_recipe(text),
        )
        self.app.push_screen(reader)

    async def action_copy_command(self) -> None:
        source = self.session.model.file.path
        output = self.last_out or default_output(self.session.resolution)
        exported = export(recipe_of(self.session), str(source), str(output), self.session.model, self.session.imatrix)
        self.app.copy_to_clipboard(exported.command())
        await self.ask(CommandReader(exported))

    # --- writing

    async def action_write(self) -> None:
        job = self.app.job if self.app.job is not None and self.app.job.running else None
        if job is not None and job.resolution.plan == self.session.plan:
            await self.ask(ProgressDialog(job))
            return
        out = self.last_out or default_output(self.session.resolution).absolute()
        seconds = self.ground.speeds.seconds([encoding(self.session.resolution)])
        dialog = WriteDialog(self.session, out, self.inputs, self.resumable(), seconds)
        dialog.busy, dialog.to_queue = job is not None, self.queue_write
        await self.ask(dialog, self.start_write if job is None else self.queue_write)

    def start_write(self, destination: Destination | None) -> None:
        """Begin the write the dialog agreed to; consent to replace was given there, or not."""
        if destination is None:
            return
        out, replace = destination
        resume = self.resumable() == out.absolute()
        session, workers = self.session, self.fleet_workers
        options = WriteOptions.of(session.settings, overwrite=replace, resume=resume)
        self.begin_write(WriteJob(session.resolution, session.imatrix, out, options, workers, self.ground.speeds))

    def queue_write(self, destination: Destination | None) -> None:
        """As `start_write`, when its turn comes."""
        if destination is None:
            return
        out, replace = destination
        recipe = self.own_recipe(self.session.settings)
        if recipe is not None:
            answers = {"out": str(out.absolute()), "replace": "yes" if replace else ""}
            self.enqueue(Queued("write", out.stem, answers, recipe))

    def write_job(self, entry: Queued) -> WriteJob:
        """The write of an entry of the queue. Raises SurgeonError."""
        resolution, imatrix = self.resolved(entry)
        out = Path(entry.answers["out"])
        settings = read_recipe(entry.recipe, Path("/"), entry.title).settings
        options = WriteOptions.of(settings, overwrite=entry.answers.get("replace") == "yes")
        job = WriteJob(resolution, imatrix, out, options, self.fleet_workers, self.ground.speeds)
        return replace(job, options=replace(options, resume=job.resume_log.exists()))

    def resumable(self) -> Path | None:
        """Where a write of this very plan was stopped, so that it can be resumed."""
        session = self.session
        kept = unfinished(session.model.file.path)
        if kept is None:
            return None
        present = recipe_text(session.plan, session.imatrix, session.moments, session.settings)
        return Path(kept.out) if kept.recipe == present else None

    def offer_resume(self) -> None:
        """Ask whether to go on with a write that an earlier session left unfinished."""
        model = self.session.model.file.path
        kept = unfinished(model)
        if kept is None or self.app.job is not None:  # the word may be of a write that keys typed ahead have started
            return

        def answered(yes: bool | None) -> None:
            if not yes:
                forget(model)
                self.say(f"not resumed; what was written stays beside {kept.out} until it is written anew")
                return
            try:
                self.begin_write(job_of(kept, self.session))
            except SurgeonError as error:
                self.fail(error)

        question = f"The last session ended while {kept.out} was being written. Resume it?"
        confirm = Confirm("unfinished write", question, "resume it")
        confirm.answered = answered
        self.app.push_screen(confirm)

    def begin_write(self, job: WriteJob, *, seen: bool = True) -> None:
        """seen: with its dialog."""
        if not self.app.start(job):
            self.say("a write is already running; w shows it", "warning")
        elif seen:
            self.app.push_screen(ProgressDialog(job))

    def action_stop(self) -> None:
        self.app.ask_to_stop()

    async def action_switch(self) -> None:
        await self.app.switch_model()

    def action_suspend(self) -> None:
        self.app.action_suspend_process()

    def action_redraw(self) -> None:
        self.app.draw_anew()

    def action_interrupt(self) -> None:
        running = " · ".join(job.doing for job in self.app.running_jobs)
        self.say(f"{running}: x stops it, q quits" if running else "nothing is running · q quits, the plan is kept")

    async def action_leave(self) -> None:
        jobs = self.app.running_jobs
        if not jobs:
            self.app.exit(0)
            return
        question = " ".join(f"{job.doing}. {job.keeps}" for job in jobs) + " Stop and quit?"

        def answered(yes: bool | None) -> None:
            if yes:
                self.app.stop_and_exit()

        await self.ask(Confirm("quit", question, "stop and quit"), answered)


def recipe_in(path: Path) -> Recipe:
    """A recipe, the types of a model, or the plan of a llama-quantize command in a text file. Raises SurgeonError."""
    if path.suffix == ".gguf":
        return from_model(load_model(path))
    if path.suffix == ".toml":
        return load_recipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SurgeonError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not any(map(is_quantize_command, text.splitlines())):
        return load_recipe(path)
    return from_command(command_in(text))


def existing_file(text: str) -> tuple[bool, Line]:
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return True, [(figures.size(path.stat().st_size), "accent")]
        return False, [("is a folder: name a file in it" if path.is_dir() else "no such file", "muted")]
    except (OSError, ValueError) as error:
        return False, [(clean(str(error)), "muted")]


def file_or_checkpoint(text: str) -> tuple[bool, Line]:
    path = Path(text).expanduser()
    try:
        if path.is_dir() and is_checkpoint(path):
            return True, [("a checkpoint; Enter offers to convert it", "accent")]
    except (OSError, ValueError) as error:
        return False, [(clean(str(error)), "muted")]
    return existing_file(text)


def writable_file(text: str) -> tuple[bool, Line]:
    path = Path(text).expanduser()
    try:
        if path.is_dir() or not text:
            return False, [("a folder; add a file name", "muted")]
        if not path.parent.is_dir():
            return False, [(clean(f"no such folder: {path.parent}"), "warning")]
        if path.exists():
            return True, [("already exists; you will be asked", "warning")]
    except (OSError, ValueError) as error:
        return False, [(clean(str(error)), "muted")]
    return True, [("a new file", "accent")]
