"""What dialogs have in common: a frame, Escape, lines of spans, a list to choose from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, TypeVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.theme import Theme
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from surgeon.tui.dialogs.type_ahead import TypeAhead
from surgeon.tui.drawing.spans import Line
from surgeon.tui.drawing.theme import role_styles
from surgeon.tui.host import Host

Result = TypeVar("Result")


class Frame(Vertical):
    """Around a dialog. Its titles are text, not markup: a model's name, or a hint, may hold brackets."""

    def render_str(self, text_content: str | Content) -> Content:
        return text_content if isinstance(text_content, Content) else Content(text_content)


class Dialog(ModalScreen[Result | None]):
    """Dismissed with its answer, or with None on Escape and Ctrl+C. Closing one never stops or destroys anything."""

    app: Host
    # Keys that end a dialog have priority, and the answer is given at once: a key typed right after Enter must find
    # the tree, with the edit done.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "leave", show=False, priority=True),
        Binding("ctrl+z", "app.suspend_process", id="suspend", show=False, priority=True),
    ]
    answered: Callable[[Result | None], None] | None = None
    _made_for: Size | None = None

    def on_resize(self, event: events.Resize) -> None:
        """The first comes with the first layout, at the size for which the dialog was composed."""
        before, self._made_for = self._made_for, event.size
        if before not in (None, event.size):
            self.resized()

    def resized(self) -> None:
        """Draw again what was made for the former size of the screen."""

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
        return text_of(lines, self.app.current_theme)


def text_of(lines: Iterable[Line], theme: Theme) -> Text:
    """Lines of spans as one rich text, for textual's own widgets."""
    roles = role_styles(theme)
    text = Text("\n", no_wrap=True, end="").join(
        Text.assemble(*((part, roles.get(role, "")) for part, role in line), end="") for line in lines
    )
    text.no_wrap = True
    return text


def _moves(*keys: tuple[str, str]) -> tuple[Binding, ...]:
    return tuple(Binding(key, f"list('{move}')", show=False, priority=True) for key, move in keys)


ARROW_KEYS = _moves(
    ("down", "cursor_down"), ("up", "cursor_up"), ("pagedown", "page_down"), ("pageup", "page_up"),
    ("home", "first"), ("end", "last"),
)  # fmt: skip
# Letters that move in a list as long as no name is being typed.
MOVING_LETTERS = {"j": "cursor_down", "k": "cursor_up", "g": "first", "G": "last"}
LIST_KEYS = (*ARROW_KEYS, *_moves(*MOVING_LETTERS.items()))


class NamedList(Dialog[Result]):
    """A dialog around one list in which typing a name goes to its line. A subclass fills `type_ahead`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *ARROW_KEYS,
        Binding("backspace", "untype", show=False, priority=True),
        Binding("enter", "take", show=False, priority=True),
    ]
    letter_keys: ClassVar[dict[str, str]] = {}
    """What other letters do as long as no name is being typed."""
    title_ = ""
    hint = ""

    def __init__(self) -> None:
        super().__init__()
        self.type_ahead = TypeAhead(())

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog") as frame:
            frame.border_title, frame.border_subtitle = self.title_, self.hint
            yield Choices()

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Choices))

    @abstractmethod
    def action_take(self) -> None:
        """Answer with the line under the cursor."""

    def refused(self, key: str) -> str:
        """Why the line cannot be chosen, '' where it can."""
        return ""

    async def on_key(self, event: events.Key) -> None:
        """Letters: a name, or what they do where none is begun."""
        letter = event.character if event.is_printable else None
        if letter is None or letter.isspace():
            return
        event.stop()
        typed = self.type_ahead
        if not typed.text and letter in MOVING_LETTERS:
            self.action_list(MOVING_LETTERS[letter])
        elif not typed.text and letter in self.letter_keys:
            await self.run_action(self.letter_keys[letter])
        else:
            self._type(typed.text + letter.lower())

    def action_untype(self) -> None:
        self._type(self.type_ahead.text[:-1])

    def action_list(self, move: str) -> None:
        super().action_list(move)
        self.forget_typed()

    def forget_typed(self) -> None:
        if self.type_ahead.text:
            self._type("")

    def _type(self, text: str) -> None:
        """Show what was typed, and go to the line it means."""
        typed = self.type_ahead
        typed.text = text
        found = typed.nearest() if text else None
        choices = self.query_one(Choices)
        if found is not None:
            choices.highlighted = choices.get_option_index(found)
        self.show_title()
        self.show_hint(typed.trouble() if text and not typed.matches() else "")

    def named(self) -> str | None:
        """The line chosen by typing or moving, None (and a hint) where what was typed does not name one."""
        typed = self.type_ahead
        key = typed.named() if typed.text else self.query_one(Choices).highlighted_id
        trouble = typed.trouble() if typed.text else ""
        if key is not None and not trouble:
            trouble = self.refused(key)
        if trouble:
            self.show_hint(trouble)
        return None if trouble else key

    def show_title(self) -> None:
        frame = self.query_one(Vertical)
        line: Line = [(self.title_, "title")]
        if self.type_ahead.text:
            line += [(": ", "muted"), (self.type_ahead.text, "changed"), ("▏", "muted")]
        frame.border_title = self.text([line])

    def show_hint(self, trouble: str = "") -> None:
        """What keys do, or why what was typed is not taken."""
        self.query_one(Vertical).border_subtitle = self.text([[(trouble, "warning")]]) if trouble else self.hint


class ChoiceDialog(NamedList[str]):
    """Enter, or a click, answers with the id of the line."""

    def action_take(self) -> None:
        key = self.named()
        if key is not None:
            self.dismiss(key)

    @on(OptionList.OptionSelected)
    def clicked(self) -> None:
        self.forget_typed()
        self.action_take()


class Choices(OptionList):
    """A list to choose from; its lines can be exchanged while the highlight stays."""

    def fill(self, entries: Sequence[tuple[str, Text]], at: str | None = None) -> None:
        """entries: id and text. The highlight stays where it was, or goes to `at`."""
        kept = self.highlighted_id if self.option_count else at
        self.clear_options()
        self.add_options([Option(text, id=key) for key, text in entries])
        keys = [key for key, _ in entries]
        self.highlighted = keys.index(kept) if kept in keys else 0 if keys else None

    @property
    def highlighted_id(self) -> str | None:
        return None if self.highlighted is None else self.get_option_at_index(self.highlighted).id
