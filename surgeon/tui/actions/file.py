"""Importance matrices, recipes, the write, and leaving."""

from __future__ import annotations

from pathlib import Path

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.llama_quantize.translation import export, from_model
from surgeon.model.model import load_model
from surgeon.plan.recipe import load_recipe, save_recipe
from surgeon.tui.dialogs.command import CommandReader
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.progress import ProgressDialog
from surgeon.tui.dialogs.prompt import PathSuggester, Prompt
from surgeon.tui.dialogs.write import Destination, WriteDialog
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.writing import WriteJob, default_output
from surgeon.tui.unfinished import forget, job_of, unfinished
from surgeon.tui.workbench import Workbench
from surgeon.write.operation import WriteOptions
from surgeon.write_guard import Kind, Permit, may_write


class FileActions(Workbench):
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
            hint="GGUF or .dat · → completes",
            suggester=PathSuggester((".gguf", ".dat", ".imatrix")),
        )
        await self.ask(prompt, self.apply_imatrix)

    def apply_imatrix(self, text: str | None) -> None:
        if text is not None:
            self.change_plan(lambda: self.session.use_imatrix(Path(text).expanduser()))

    async def action_save(self) -> None:
        default = self.session.model.file.path.absolute().with_suffix(".recipe.toml")
        prompt = Prompt(
            "save recipe", writable_file, value=str(default), hint="Enter saves", suggester=PathSuggester((".toml",))
        )
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
            save_recipe(self.session.recipe(), path, Permit(self.inputs, replace=replace))
        except SurgeonError as error:
            self.fail(error)
        else:
            self.say(f"saved {path}")

    async def action_load(self) -> None:
        prompt = Prompt(
            "load recipe",
            existing_file,
            value=self.folder,
            hint="TOML, or a GGUF whose types are taken · → completes",
            suggester=PathSuggester((".toml", ".gguf")),
        )
        await self.ask(prompt, self.apply_recipe)

    def apply_recipe(self, text: str | None) -> None:
        if text is None:
            return
        path = Path(text).expanduser()

        def change() -> str:
            recipe = from_model(load_model(path)) if path.suffix == ".gguf" else load_recipe(path)
            return self.session.use_recipe(recipe, f"recipe {path.name}")

        self.change_plan(change)

    async def action_copy_command(self) -> None:
        source = self.session.model.file.path
        output = self.last_out or default_output(self.session.resolution)
        exported = export(self.session.recipe(), str(source), str(output), self.session.model, self.session.imatrix)
        self.app.copy_to_clipboard(exported.command())
        await self.ask(CommandReader(exported))

    # --- writing

    async def action_write(self) -> None:
        job = self.app.job
        if job is not None and job.running:
            await self.ask(ProgressDialog(job))
            return
        out = self.last_out or default_output(self.session.resolution).absolute()
        await self.ask(WriteDialog(self.session.resolution, out), self.start_write)

    def start_write(self, destination: Destination | None) -> None:
        """Begin the write the dialog agreed to; consent to replace was given there, or not."""
        if destination is None:
            return
        out, replace = destination
        options = WriteOptions(overwrite=replace)
        self._start(WriteJob(self.session.resolution, self.session.imatrix, out, options))

    def offer_resume(self) -> None:
        """Ask whether to go on with a write that an earlier session left unfinished."""
        model = self.session.model.file.path
        kept = unfinished(model)
        if kept is None:
            return

        def answered(yes: bool | None) -> None:
            if not yes:
                forget(model)
                self.say(f"not resumed; what was written stays beside {kept.out} until it is written anew")
                return
            try:
                self._start(job_of(kept, self.session))
            except SurgeonError as error:
                self.fail(error)

        question = f"The last session ended while {kept.out} was being written. Resume it?"
        confirm = Confirm("unfinished write", question, "resume it")
        confirm.answered = answered
        self.app.push_screen(confirm)

    def _start(self, job: WriteJob) -> None:
        if not self.app.start(job):
            self.say("a write is already running; w shows it", "warning")
            return
        self.app.push_screen(ProgressDialog(job))

    async def action_leave(self) -> None:
        jobs = self.app.running_jobs
        if not jobs:
            self.app.exit(0)
            return
        question = " ".join(f"{job.doing}." for job in jobs) + " Stop and quit? No half-written file is left behind."

        def answered(yes: bool | None) -> None:
            if yes:
                self.app.stop_and_exit()

        await self.ask(Confirm("quit", question, "stop and quit"), answered)


def existing_file(text: str) -> tuple[bool, Line]:
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return True, [(figures.size(path.stat().st_size), "accent")]
        return False, [("a folder; keep typing" if path.is_dir() else "no such file", "muted")]
    except (OSError, ValueError) as error:
        return False, [(clean(str(error)), "muted")]


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
