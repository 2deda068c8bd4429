"""Choosing one of a few things: a column to sort by, a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.tui.dialogs.base import ChoiceDialog, Choices, text_of
from surgeon.tui.dialogs.type_ahead import TypeAhead
from surgeon.tui.drawing.spans import Line


@dataclass(frozen=True)
class Entry:
    """called: names to type beside the key itself."""

    key: str
    line: Line
    called: tuple[str, ...] = ()


class Picker(ChoiceDialog):
    def __init__(
        self,
        title: str,
        entries: Sequence[Entry],
        at: str | None = None,
        hint: str = "type a name, or ↑ ↓ · Enter apply · Esc cancel",
    ) -> None:
        super().__init__()
        self.title_, self.entries, self.at, self.hint = title, entries, at, hint
        self.type_ahead = TypeAhead([(entry.key, (*entry.called, entry.key)) for entry in entries], within=True)

    def on_mount(self) -> None:
        theme = self.app.current_theme
        self.query_one(Choices).fill([(entry.key, text_of([entry.line], theme)) for entry in self.entries], self.at)
