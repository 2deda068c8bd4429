"""What dialogs have in common: a frame, Escape, lines of spans, a list to choose from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, TypeVar

from rich.text import Text
from textual import on
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from surgeon.tui.drawing.canvas import role_styles
from surgeon.tui.drawing.spans import Line
from surgeon.tui.host import Host

Result = TypeVar("Result")


class Dialog(ModalScreen[Result | None]):
    """Dismissed with its answer, or with None on Escape."""

    app: Host
    # Keys that end a dialog have priority, and the answer is given at once: a key typed right after Enter must find
    # the tree, with the edit done.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False, priority=True)]
    answered: Callable[[Result | None], None] | None = None

    def dismiss(self, result: Result | None = None) -> AwaitComplete:
        done = super().dismiss(result)
        if self.answered is not None:
            self.answered(result)
        return done

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_list(self, move: str) -> None:
        """What LIST_KEYS do, in dialogs with a list."""
        getattr(self.query_one(Choices), f"action_{move}")()

    def text(self, lines: Iterable[Line]) -> Text:
        return text_of(lines, self.app.current_theme.dark)


def text_of(lines: Iterable[Line], dark: bool) -> Text:
    """Lines of spans as one rich text, for textual's own widgets."""
    roles = role_styles(dark)
    text = Text("\n", no_wrap=True, end="").join(
        Text.assemble(*((part, roles.get(role, "")) for part, role in line), end="") for line in lines
    )
    text.no_wrap = True
    return text


async def drained(widget: Widget) -> None:
    """Wait until `widget` has dealt with the keys sent to it so far: what was typed before Enter is in the text."""
    done = asyncio.Event()
    widget.call_later(done.set)
    await done.wait()


# With priority, so that they and Enter are dealt with in the order typed.
LIST_KEYS = tuple(
    Binding(keys, f"list('{move}')", show=False, priority=True)
    for keys, move in (
        ("down,j", "cursor_down"),
        ("up,k", "cursor_up"),
        ("pagedown", "page_down"),
        ("pageup", "page_up"),
        ("home,g", "first"),
        ("end,G", "last"),
    )
)


class ChoiceDialog(Dialog[str]):
    """A dialog around one list: Enter, or a click, answers with the id of the line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", show=False, priority=True),
        *LIST_KEYS,
    ]

    def action_take(self) -> None:
        choices = self.query_one(Choices)
        index = choices.highlighted
        if index is not None and not choices.get_option_at_index(index).disabled:
            self.dismiss(choices.highlighted_id)

    @on(OptionList.OptionSelected)
    def clicked(self) -> None:
        self.action_take()


class Choices(OptionList):
    """A list to choose from; its lines can be exchanged while the highlight stays."""

    def fill(self, entries: Sequence[tuple[str, Text, bool]], at: str | None = None) -> None:
        """entries: id, text, whether it can be chosen. The highlight stays where it was, or goes to `at`."""
        kept = self.highlighted_id if self.option_count else at
        self.clear_options()
        self.add_options([Option(text, id=key, disabled=not enabled) for key, text, enabled in entries])
        for index, (key, _, enabled) in enumerate(entries):
            if key == kept and enabled:
                self.highlighted = index
                return
        self.highlighted = next((index for index, entry in enumerate(entries) if entry[2]), None)

    @property
    def highlighted_id(self) -> str | None:
        return None if self.highlighted is None else self.get_option_at_index(self.highlighted).id
