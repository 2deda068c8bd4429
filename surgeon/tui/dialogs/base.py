"""What dialogs have in common: a frame, Escape, lines of spans, a list to choose from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from surgeon.tui.canvas import role_styles
from surgeon.tui.spans import Line

if TYPE_CHECKING:
    from surgeon.tui.app import SurgeonApp

Result = TypeVar("Result")


class Dialog(ModalScreen[Result | None]):
    """Dismissed with its answer, or with None on Escape."""

    app: SurgeonApp
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave", show=False)]

    def action_leave(self) -> None:
        self.dismiss(None)

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


class Choices(OptionList):
    """A list to choose from, with the tree's keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
        Binding("g", "first", show=False),
        Binding("G", "last", show=False),
    ]

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
