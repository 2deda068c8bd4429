"""The main screen: the workbench with all its actions."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.binding import BindingType

from surgeon.tui.actions.edit import EditActions
from surgeon.tui.actions.file import FileActions
from surgeon.tui.actions.fit import FitActions
from surgeon.tui.actions.heal import HealActions
from surgeon.tui.actions.view import ViewActions
from surgeon.tui.drawing.bars import hint_at
from surgeon.tui.drawing.tree_view import TreeView
from surgeon.tui.keys import bindings


class MainScreen(ViewActions, EditActions, FileActions, FitActions, HealActions):
    BINDINGS: ClassVar[list[BindingType]] = [*bindings()]
    AUTO_FOCUS = "#tree"

    @on(TreeView.Chosen)
    def clicked(self) -> None:
        self.action_toggle_fold()

    async def on_click(self, event: events.Click) -> None:
        if event.widget is not None and event.widget.id == "bar" and not self.message:
            hint = hint_at(self.hints, event.x)
            if hint is not None:
                await self.run_action(hint.action)
