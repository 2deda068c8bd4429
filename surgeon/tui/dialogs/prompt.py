"""A line to be typed: rules, filters, paths. What is typed is checked at every key, and the answer stands below."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from surgeon.tui.dialogs.base import Dialog, Frame
from surgeon.tui.dialogs.entry import Entry
from surgeon.tui.drawing.spans import Line, cut

# What a text means: whether it can be accepted, and the line that says so.
Check = Callable[[str], tuple[bool, Line]]


class Prompt(Dialog[str]):
    """Answers with the text, which `check` has accepted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", show=False, priority=True),
        Binding("up", "recall(1)", show=False),
        Binding("down", "recall(-1)", show=False),
    ]

    def __init__(
        self,
        title: str,
        check: Check,
        *,
        value: str = "",
        hint: str = "",
        endings: tuple[str, ...] | None = None,
        history: str = "",
    ) -> None:
        """endings, history: as those of Entry."""
        super().__init__()
        self.title_, self.check, self.value, self.hint = title, check, value, hint
        self.entry = Entry(value, endings=endings, history=history)
        self.checked = ("", False)  # the text that was checked last, and whether it is good

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog prompt") as frame:
            frame.border_title = self.title_
            frame.border_subtitle = self.hint
            yield self.entry
            yield Static(id="answer")

    def on_mount(self) -> None:
        self.set_focus(self.entry)
        self.say(self.value)

    def say(self, value: str) -> bool:
        good, line = self.check(value)
        answer = self.query_one("#answer", Static)
        answer.update(self.text([cut(line, max(20, self.app.size.width - 6))]))
        self.checked = (value, good)
        return good

    def resized(self) -> None:
        self.say(self.entry.value)

    @on(Input.Changed)
    def changed(self, event: Input.Changed) -> None:
        self.say(event.value)

    def action_recall(self, step: int) -> None:
        self.entry.action_recall(step)

    def action_take(self) -> None:
        value = self.entry.value
        # What was checked as it was typed is not checked again: a filter asks every tensor.
        if self.checked == (value, True) or self.say(value):
            self.entry.keep()
            self.dismiss(value)
