"""The main screen: the workbench with all its actions."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.binding import BindingType

from surgeon.session.rows import SORTS
from surgeon.tui.actions.bench import BenchActions
from surgeon.tui.actions.edit import EditActions
from surgeon.tui.actions.view import ViewActions
from surgeon.tui.drawing.bars import hint_at, strip_layer_at
from surgeon.tui.drawing.tree_view import TreeView
from surgeon.tui.keys import bindings


class MainScreen(ViewActions, EditActions, BenchActions):
    BINDINGS: ClassVar[list[BindingType]] = [*bindings()]
    AUTO_FOCUS = "#tree"

    @on(TreeView.Chosen)
    def clicked(self) -> None:
        self.action_toggle_fold()

    async def on_click(self, event: events.Click) -> None:
        """On a key of the bar, a column's title, a layer of the strip."""
        place = event.widget.id if event.widget is not None else None
        if place == "bar" and not self.message:
            hint = hint_at(self.hints, event.x)
            if hint is not None:
                await self.run_action(hint.action)
        elif place == "heads":
            key = self.tree_.column_at(event.x)
            if key in SORTS:
                self.apply_sort(key)
        elif place == "strip":
            layer = strip_layer_at(self.session, event.x, self.app.size.width)
            if layer is not None:
                self.go_to_layer(layer)
