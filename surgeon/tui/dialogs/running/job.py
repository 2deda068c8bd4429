"""What the dialogs of a write and of a run of the engine have in common: keys, frame, the lines of a job."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from surgeon.tui.dialogs.base import Dialog, Frame
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.spans import Line, plain


class RunningJob(Protocol):
    """Work in a thread of its own."""

    @property
    def running(self) -> bool: ...


class JobDialog(Dialog[None]):
    """Shows `job`. Escape lets it run in the background, x asks whether to stop it; Enter closes what has ended."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "leave", show=False, priority=True),
        Binding("x", "stop", show=False, priority=True),
        Binding("enter,space,q", "close", show=False, priority=True),
    ]
    place: ClassVar[str] = ""
    """A class of the frame."""
    keys_running: ClassVar[str] = ""
    keys_ended: ClassVar[str] = ""

    def __init__(self, job: RunningJob, title: str) -> None:
        super().__init__()
        self._job, self._title = job, title

    @abstractmethod
    def job_lines(self, width: int) -> list[Line]:
        """What is shown of the job now."""

    def compose(self) -> ComposeResult:
        with Frame(classes=f"dialog {self.place}") as frame:
            frame.border_title = self._title
            frame.border_subtitle = self._keys()
            yield Canvas(self._lines, name="job")

    @property
    def shown(self) -> str:
        return "\n".join(plain(line) for line in self._canvas.lines)

    @property
    def _canvas(self) -> Canvas:
        return self.query_one("#job", Canvas)

    def _lines(self, width: int, height: int) -> list[Line]:
        return self.job_lines(width)

    def _keys(self) -> str:
        return self.keys_running if self._job.running else self.keys_ended

    def redraw(self) -> None:
        if not self.query(Canvas):
            return  # it is being opened: what is new will be seen in its first frame
        self._canvas.redraw()
        frame = self.query_one(Vertical)
        if frame.border_subtitle != self._keys():
            frame.border_subtitle = self._keys()

    def action_stop(self) -> None:
        if self._job.running:
            self.app.ask_to_stop()

    def action_close(self) -> None:
        if not self._job.running:
            self.dismiss(None)
