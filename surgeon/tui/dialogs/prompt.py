"""A line to be typed: rules, filters, paths. What is typed is checked at every key, and the answer stands below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.suggester import Suggester
from textual.widgets import Input, Static

from surgeon.tui.dialogs.base import Dialog, drained
from surgeon.tui.drawing.spans import Line, cut

# What a text means: whether it can be accepted, and the line that says so.
Check = Callable[[str], tuple[bool, Line]]


class PathSuggester(Suggester):
    """Completes the last part of a path; → takes the completion."""

    def __init__(self, endings: tuple[str, ...] = ()) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.endings = endings

    async def get_suggestion(self, value: str) -> str | None:
        folder, slash, start = value.rpartition("/")
        base = Path((folder + slash) or ".").expanduser()
        try:
            entries = sorted(base.iterdir())
        except OSError:
            return None
        for entry in entries:
            if not entry.name.startswith(start) or entry.name == start or (not start and entry.name.startswith(".")):
                continue
            if entry.is_dir():
                return f"{folder}{slash}{entry.name}/"
            if not self.endings or entry.name.endswith(self.endings):
                return f"{folder}{slash}{entry.name}"
        return None


class Prompt(Dialog[str]):
    """Answers with the text, which `check` has accepted."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "take", show=False, priority=True)]

    def __init__(
        self, title: str, check: Check, *, value: str = "", hint: str = "", suggester: Suggester | None = None
    ) -> None:
        super().__init__()
        self.title_, self.check, self.value, self.hint, self.suggester = title, check, value, hint, suggester

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog prompt") as frame:
            frame.border_title = self.title_
            frame.border_subtitle = self.hint
            yield Input(self.value, suggester=self.suggester, select_on_focus=False)
            yield Static(id="answer")

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Input))
        self.say(self.value)

    def say(self, value: str) -> bool:
        good, line = self.check(value)
        answer = self.query_one("#answer", Static)
        answer.update(self.text([cut(line, max(20, self.app.size.width - 6))]))
        return good

    @on(Input.Changed)
    def changed(self, event: Input.Changed) -> None:
        self.say(event.value)

    async def action_take(self) -> None:
        await drained(self.query_one(Input))
        value = self.query_one(Input).value
        if self.say(value):
            self.dismiss(value)
