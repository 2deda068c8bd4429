"""Which columns the tree shows, and in which order."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from surgeon.tui.dialogs.base import Choices, NamedList, text_of
from surgeon.tui.dialogs.type_ahead import TypeAhead
from surgeon.tui.drawing.cells import COLUMNS, DEFAULT_COLUMNS
from surgeon.tui.drawing.spans import Line, fit


class ColumnChooser(NamedList[tuple[str, ...]]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "choose", "show or hide", show=False, priority=True),
    ]
    letter_keys: ClassVar[dict[str, str]] = {"J": "shift(1)", "K": "shift(-1)", "D": "defaults"}
    title_ = "columns"
    hint = "Space show/hide · J K move · D defaults · Enter apply · Esc cancel"

    def __init__(self, chosen: tuple[str, ...]) -> None:
        super().__init__()
        self.chosen = list(chosen)
        self.order = [*chosen, *(key for key in COLUMNS if key not in chosen)]
        self.type_ahead = TypeAhead([(key, (column.title, key)) for key, column in COLUMNS.items()], within=True)

    def on_mount(self) -> None:
        self.show_columns()

    def show_columns(self, at: str | None = None) -> None:
        theme = self.app.current_theme
        choices = self.query_one(Choices)
        choices.fill([(key, text_of([self._line(key)], theme)) for key in self.order], at)
        if at is not None:
            choices.highlighted = self.order.index(at)

    def _line(self, key: str) -> Line:
        column, shown = COLUMNS[key], key in self.chosen
        return [
            ("● " if shown else "○ ", "accent" if shown else "faint"),
            (fit(column.title, 11), "text" if shown else "muted"),
            (column.help, "muted"),
        ]

    def action_choose(self) -> None:
        key = self.named()
        if key is None:
            return
        self.forget_typed()
        chosen = set(self.chosen) ^ {key}
        self.chosen = [other for other in self.order if other in chosen]
        self.show_columns(key)

    def action_shift(self, by: int) -> None:
        key = self.query_one(Choices).highlighted_id
        if key is None:
            return
        at = self.order.index(key)
        to = max(0, min(len(self.order) - 1, at + by))
        self.order.insert(to, self.order.pop(at))
        self.chosen = [other for other in self.order if other in self.chosen]
        self.show_columns(key)

    def action_defaults(self) -> None:
        self.chosen = list(DEFAULT_COLUMNS)
        self.order = [*DEFAULT_COLUMNS, *(key for key in COLUMNS if key not in DEFAULT_COLUMNS)]
        self.show_columns()

    def action_take(self) -> None:
        if self.named() is not None:
            self.dismiss(tuple(self.chosen) or DEFAULT_COLUMNS)
