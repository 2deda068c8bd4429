"""A question to be answered with y or n; anything but y means no."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from surgeon.tui.dialogs.base import Dialog, Frame
from surgeon.tui.drawing.spans import clean, wrap


class Confirm(Dialog[bool]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes", show=False, priority=True),
        Binding("n", "answer(False)", "no", show=False, priority=True),
        Binding("enter", "answer(False)", "no", show=False, priority=True),
    ]

    def __init__(self, title: str, question: str, yes: str) -> None:
        super().__init__()
        self.title_, self.question, self.yes = title, question, yes

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog narrow") as frame:
            frame.border_title = self.title_
            frame.border_subtitle = "n or Esc cancel"
            lines = wrap(clean(self.question), 60, "text")
            yield Static(
                self.text([*lines, [], [("y", "key"), (f" {self.yes}   ", "text"), ("n", "key"), (" no", "text")]])
            )

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
