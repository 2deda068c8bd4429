"""Where to write, after a look at the pre-flight list."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Input, Static

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.machine import available_cores
from surgeon.resolve.resolve import Resolution
from surgeon.session.session import Session
from surgeon.tui.dialogs.base import Frame
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.entry import Entry
from surgeon.tui.dialogs.forms.begin_or_queue import BeginOrQueue
from surgeon.tui.dialogs.preflight import problem_lines
from surgeon.tui.drawing.spans import Line, clean, elide_start, plain
from surgeon.write.feedback import feedback_seconds
from surgeon.write_guard import Kind, Permit, may_write
from surgeon_kernels.formats import FORMATS

Destination = tuple[Path, bool]  # the path to write to; whether the file there may be replaced


class WriteDialog(BeginOrQueue[Destination]):
    """Answers with where to write; an existing file only after a yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,pagedown", "scroll(1)", show=False),
        Binding("up,pageup", "scroll(-1)", show=False),
    ]

    def __init__(
        self,
        session: Session,
        out: Path,
        inputs: tuple[Path, ...],
        resumable: Path | None = None,
        seconds: float | None = None,
    ) -> None:
        """inputs: never to be written over; resumable: where a write of this plan was stopped; seconds: it takes by the
        speed of an earlier one."""
        super().__init__()
        self.resolution, self.settings, self.inputs = session.resolution, session.settings, inputs
        self.out, self.resumable, self.seconds = out, resumable, seconds
        self.answer = ""

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog") as frame:
            frame.border_title = "write"
            keys = "Enter queue" if self.busy else "Enter write · ^L queue"
            frame.border_subtitle = f"{keys} · Tab complete · Esc cancel"
            yield Static(self.text([self._sizes(), *encoder_lines(self.resolution, self.seconds), []]))
            yield Entry(str(self.out), endings=(".gguf",))
            yield Static(id="answer")
            with VerticalScroll(can_focus=False):
                yield Static(self._problems(), id="problems")

    def _problems(self) -> Text:
        return self.text(problem_lines(self.resolution.problems, min(92, self.app.size.width - 10)))

    def resized(self) -> None:
        self.query_one("#problems", Static).update(self._problems())

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Input))

    def _sizes(self) -> Line:
        resolution = self.resolution
        converted = sum(op.action == "convert" for op in resolution.ops)
        copied = len(resolution.kept) - converted
        tensors = figures.counted(converted, "tensor")
        return [
            (f"{resolution.plan.file_type}  ", "changed"),
            (figures.size(resolution.total_bytes), "strong"),
            (f"  {resolution.bpw:.2f} bpw   {tensors} to convert, {copied} to copy", "muted"),
            (
                f", {len(resolution.ops) - len(resolution.kept)} dropped"
                * (len(resolution.ops) > len(resolution.kept)),
                "pruned",
            ),
        ]

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    @on(Input.Changed)
    def changed(self, event: Input.Changed) -> None:
        line = self._answer(Path(event.value).expanduser())
        self.answer = plain(line)
        self.query_one("#answer", Static).update(self.text([line]))

    def _answer(self, path: Path) -> Line:
        if self.resolution.errors:
            return [("cannot be written: see the errors below", "pruned")]
        if path.is_dir():
            return [("is a folder; add a file name", "warning")]
        if not path.parent.is_dir():
            return [(clean(f"no such folder: {path.parent}"), "warning")]
        if refusal := self._refusal(path):
            return [(clean(refusal), "warning")]
        files = self._files(path)
        there = [file for file in files if file.exists()]
        what = "a new file" if files == [path] else f"{figures.counted(len(files), 'new file')}, {files[0].name} …"
        line: Line = [(clean(what), "muted")]
        if there:
            size = figures.size(sum(file.stat().st_size for file in there))
            name = "" if there == [path] else f"{there[0].name} "
            line = [(clean(f"{name}already exists, {size}: you will be asked"), "warning")]
        if path.absolute() == self.resumable:
            line.append(("   was stopped: Enter resumes it", "accent"))
        return line + free_line(self.resolution.total_bytes, path.parent)

    def _refusal(self, path: Path) -> str:
        """Why nothing may be written there, also after a yes; '' where it may."""
        for file in self._files(path):
            try:
                may_write(file, Kind.MODEL, Permit(self.inputs, replace=True))
            except SurgeonError as error:
                return str(error).removeprefix(f"{path}: ")
        return ""

    def _files(self, path: Path) -> list[Path]:
        """What is written under that name: one file, or the shards of a set."""
        return [part.path for part in self.resolution.parts(path, self.settings.split_max_bytes)]

    async def action_take(self) -> None:
        await self._take(self.dismiss)

    async def action_queue(self) -> None:
        await self._take(self.leave_to_queue)

    async def _take(self, then: Callable[[Destination], object]) -> None:
        value = self.query_one(Input).value
        path = Path(value).expanduser()
        if self.resolution.errors or not value or path.is_dir() or not path.parent.is_dir() or self._refusal(path):
            self.app.bell()
            return
        there = [file for file in self._files(path) if file.exists()]
        if there:
            question = f"{elide_start(str(there[0]), 60)} already exists. Overwrite it?"
            if len(there) > 1:
                question = f"{elide_start(str(there[0]), 60)} and {len(there) - 1} more exist already. Overwrite them?"
            confirm = Confirm("replace", question, "replace it")
            confirm.answered = lambda yes: self._accept(path, True, then) if yes else None
            await self.app.push_screen(confirm)
            return
        self._accept(path, False, then)

    def _accept(self, path: Path, replace: bool, then: Callable[[Destination], object]) -> None:
        self.query_one(Entry).keep()
        then((path, replace))


def free_line(needed: int, folder: Path) -> Line:
    """The space on the disk of `folder`, as a warning where it is less than what is needed."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return []
    role = "muted" if free > needed else "pruned"
    return [(f"   needs {figures.size(needed)}, {figures.size(free)} free", role)]


def encoder_lines(resolution: Resolution, seconds: float | None = None) -> list[Line]:
    """Which encoder writes how many tensors, and about how long that takes.

    seconds: by the speed of an earlier write; without one the feedback encoder's is reckoned.
    """
    if resolution.moments is None:
        return [] if seconds is None else [[(f"takes about {figures.duration(max(1, seconds))}", "muted")]]
    used = len(resolution.with_feedback)
    quantized = sum(op.action == "convert" and FORMATS[op.to_type].is_quantized for op in resolution.kept)
    seconds = feedback_seconds(resolution, available_cores()) if seconds is None else seconds
    return [
        [
            ("feedback encoder: ", "muted"),
            (f"{used} of {quantized} tensors", "text" if used == quantized else "warning"),
            (f", about {figures.duration(max(1, seconds))}", "muted"),
        ]
    ]
