"""Lines to be read: the pre-flight list, the llama-quantize command, the help."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from surgeon.tui.dialogs.base import Dialog, Frame
from surgeon.tui.drawing.spans import Line, plain


class Reader(Dialog[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
        Binding("q,enter", "leave", show=False, priority=True),
    ]

    def __init__(self, title: str, hint: str, *, tall: bool = False) -> None:
        super().__init__()
        self.title_, self.hint, self.tall = title, hint, tall
        self.shown = ""

    @abstractmethod
    def lines(self, width: int) -> Sequence[Line]:
        """All there is to read."""

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog tall" if self.tall else "dialog") as frame:
            frame.border_title = self.title_
            frame.border_subtitle = self.hint
            with VerticalScroll():
                yield Static(self._text())

    def _text(self) -> Text:
        lines = self.lines(min(92, self.app.size.width - 8))
        self.shown = "\n".join(map(plain, lines))
        return self.text(lines)

    def show_lines(self) -> None:
        """After what there is to read has changed, or the width for it."""
        self.query_one(Static).update(self._text())

    def resized(self) -> None:
        self.show_lines()

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)
