"""Several things to be answered at once: paths, numbers, what is wanted. Checked at every key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.theme import Theme
from textual.widgets import Input, Static

from surgeon.tui.answers import Answers
from surgeon.tui.dialogs.base import Frame, text_of
from surgeon.tui.dialogs.entry import Entry, LastPathEntry
from surgeon.tui.dialogs.forms.begin_or_queue import BeginOrQueue
from surgeon.tui.drawing.spans import Line, cut, plain

FormCheck = Callable[[Answers], tuple[bool, list[Line]]]


@dataclass(frozen=True)
class Field:
    """options: (key, words) to switch on and off, the answer being the keys with blanks between; endings: of a path
    (None: no path); help: shown behind the label while the field is empty; several: paths with commas between."""

    key: str
    label: str
    value: str = ""
    help: str = ""
    endings: tuple[str, ...] | None = None
    options: tuple[tuple[str, str], ...] = ()
    several: bool = False


class Switches(Static, can_focus=True):
    """Options in one line: ← → go along them, Space switches."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "go(-1)", show=False),
        Binding("right", "go(1)", show=False),
        Binding("space", "switch", show=False),
    ]

    class Switched(Message):
        """An option is on or off now."""

    def __init__(self, field: Field, theme: Theme) -> None:
        super().__init__(id=field.key, classes="answer-field")
        self.options, self.theme = field.options, theme
        self.chosen = set(field.value.split())
        self.at = 0

    @property
    def value(self) -> str:
        return " ".join(key for key, _ in self.options if key in self.chosen)

    def render(self) -> Text:
        line: Line = []
        for place, (key, words) in enumerate(self.options):
            on_, here = key in self.chosen, self.has_focus and place == self.at
            line.append(("● " if on_ else "○ ", "accent" if on_ else "faint"))
            line.append((words, "strip-scope" if here else "text" if on_ else "muted"))
            line.append(("   ", ""))
        return text_of([line], self.theme)

    def action_go(self, by: int) -> None:
        self.at = (self.at + by) % len(self.options)
        self.refresh()

    def action_switch(self) -> None:
        self.chosen ^= {self.options[self.at][0]}
        self.refresh()
        self.post_message(self.Switched())


class Form(BeginOrQueue[Answers]):
    """Answers with the texts by key, which `check` has accepted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
    ]

    def __init__(self, title: str, fields: Sequence[Field], check: FormCheck, *, do: str, rows: int = 0) -> None:
        """do: what Enter does, in a word; rows: for what the check says, at least."""
        super().__init__()
        self._rows = rows
        self.title_, self.fields, self.check, self.do = title, fields, check, do
        self.answer = ""

    def compose(self) -> ComposeResult:
        theme = self.app.current_theme
        with Frame(classes="dialog form") as frame:
            frame.border_title = self.title_
            frame.border_subtitle = self.keys
            for field in self.fields:
                with Horizontal(classes="field"):
                    yield Static(self.text([[(field.label, "muted")]]), classes="label")
                    yield self._input(field, theme)
            yield Static(id="answer")

    @property
    def keys(self) -> str:
        """What keys do, for the frame."""
        do = "queue" if self.busy and self.to_queue is not None else self.do
        queue = " · ^L queue" if self.to_queue is not None and do != "queue" else ""
        return f"Enter {do}{queue} · Tab complete · ^P earlier · Esc cancel"

    def _input(self, field: Field, theme: Theme) -> Input | Switches:
        if field.options:
            return Switches(field, theme)
        kind = LastPathEntry if field.several else Entry
        return kind(field.value, placeholder=field.help, endings=field.endings, id=field.key)

    def on_mount(self) -> None:
        first = self.fields[0].key
        path = next((field.key for field in self.fields if field.endings is not None), first)
        self.set_focus(self.query_one(f"#{path}"))
        self.say()

    @property
    def answers(self) -> Answers:
        return {field.key: self._value(field).strip() for field in self.fields}

    def _value(self, field: Field) -> str:
        if field.options:
            return self.query_one(f"#{field.key}", Switches).value
        return self.query_one(f"#{field.key}", Input).value

    @on(Input.Changed)
    @on(Switches.Switched)
    def say(self) -> bool:
        good, lines = self.check(self.answers)
        self.answer = "\n".join(map(plain, lines))
        self._rows = max(self._rows, len(lines))  # it grows, but does not shrink and grow with every key
        lines = [*lines, *[[]] * (self._rows - len(lines)), *self._help()]
        room = max(20, min(self.app.size.width, 100) - 6)
        self.query_one("#answer", Static).update(self.text([[], *(cut(line, room) for line in lines)]))
        return good

    def resized(self) -> None:
        self.say()

    def on_descendant_focus(self) -> None:
        self.say()

    def _help(self) -> list[Line]:
        """What the field with the focus means (its own hint is hidden as soon as it is filled), or how it is switched.

        A blank line where there is nothing to say, so that nothing moves as the focus does.
        """
        if not any(field.help or field.options for field in self.fields):
            return []
        focused = self.focused.id if self.focused is not None else None
        for field in self.fields:
            if field.key == focused and field.options:
                return [[("← → go along, Space switches", "faint")]]
            if field.key == focused and field.help and self._value(field):
                return [[(f"{field.label}: {field.help}", "faint")]]
        return [[]]

    def action_take(self) -> None:
        answers = self._taken()
        if answers is not None:
            self.dismiss(answers)

    def action_queue(self) -> None:
        answers = self._taken() if self.to_queue is not None else None
        if answers is not None:
            self.leave_to_queue(answers)

    def _taken(self) -> Answers | None:
        """The answers, which can be recalled from now on; None (and a bell) where they do not do."""
        if not self.say():
            self.app.bell()
            return None
        for entry in self.query(Entry):
            entry.keep()
        return self.answers
