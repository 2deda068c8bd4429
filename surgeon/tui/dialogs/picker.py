"""Choosing one of a few things: a column to sort by, a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical

from surgeon.tui.dialogs.base import ChoiceDialog, Choices, text_of
from surgeon.tui.drawing.spans import Line


@dataclass(frozen=True)
class Entry:
    key: str
    line: Line
    enabled: bool = True


class Picker(ChoiceDialog):
    def __init__(
        self, title: str, entries: Sequence[Entry], at: str | None = None, hint: str = "Enter takes it"
    ) -> None:
        super().__init__()
        self.title_, self.entries, self.at, self.hint = title, entries, at, hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = self.title_
            frame.border_subtitle = self.hint
            yield Choices()

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Choices))
        dark = self.app.current_theme.dark
        rows = [(entry.key, text_of([entry.line], dark), entry.enabled) for entry in self.entries]
        self.query_one(Choices).fill(rows, self.at)
