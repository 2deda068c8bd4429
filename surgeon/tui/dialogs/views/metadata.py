"""D: every metadata key of the output, to be searched, read whole, set, added, deleted. Edits are steps of the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.gguf.values import Value, ValueType
from surgeon.plan import plan as plans
from surgeon.plan.plan import Plan
from surgeon.session.metadata import KeyRow, folded, key_rows, text_of_file, whole_lines, with_text
from surgeon.session.session import Session
from surgeon.tui.dialogs.base import LIST_KEYS, Choices, Dialog, Frame, text_of
from surgeon.tui.dialogs.prompt import Check, Prompt
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.spans import Line, clean, fit, wrap

_SIGNS = {
    "same": ("  ", "text"),
    "set": ("* ", "changed"),
    "new": ("+ ", "changed"),
    "deleted": ("✗ ", "pruned"),
    "planned": ("· ", "accent"),
}
_HINT = "Enter read · e edit · a add · x delete · s stored · f file · / find · Esc"


class Metadata(Dialog[None]):
    """Edits the session's plan directly."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *LIST_KEYS,
        *(
            Binding(keys, action, show=False, priority=True)
            for keys, action in (
                ("enter", "read"),
                ("e", "edit"),
                ("a", "add"),
                ("x,delete", "delete"),
                ("s", "as_stored"),
                ("f", "from_file"),
                ("slash", "search"),
                ("u", "undo"),
                ("ctrl+r", "redo"),
                ("q,D", "leave"),
            )
        ),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.search = ""
        self.rows: list[KeyRow] = []

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog tall wide metadata") as frame:
            frame.border_title = "metadata of the output"
            frame.border_subtitle = _HINT
            yield Choices()
            yield Static(id="about")

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Choices))
        self.show_keys()

    def resized(self) -> None:
        self.show_keys()

    @property
    def row(self) -> KeyRow | None:
        """The key under the cursor."""
        key = self.query_one(Choices).highlighted_id
        return next((row for row in self.rows if row.key == key), None)

    def show_keys(self, at: str | None = None) -> None:
        self.rows = key_rows(self.session, self.search)
        theme, width = self.app.current_theme, max(40, self.app.size.width - 8)
        wide = min(max((len(row.key) for row in self.rows), default=20), width * 2 // 5)
        lines = [(row.key, text_of([key_line(row, wide, width)], theme)) for row in self.rows]
        none: Line = [("no key has that: / searches again", "muted")]
        choices = self.query_one(Choices)
        choices.fill(lines or [("", text_of([none], theme))], at)
        if at is not None:
            choices.highlighted = next((place for place, row in enumerate(self.rows) if row.key == at), 0)
        self.query_one("#about", Static).update(self.text([self._about()]))

    def _about(self) -> Line:
        counts = [
            (sum(row.state == state for row in self.rows), word)
            for state, word in (("set", "set"), ("new", "new"), ("deleted", "deleted"), ("planned", "by the plan"))
        ]
        line: Line = [(figures.counted(len(self.rows), "key"), "text")]
        line += [(f" · {count} {word}", "changed") for count, word in counts if count]
        return [*line, (f"   / {clean(self.search)}", "accent")] if self.search else line

    def note(self, text: str) -> None:
        self.query_one("#about", Static).update(self.text([[(clean(text), "warning")]]))

    # --- what the keys do

    def action_read(self) -> None:
        row = self.row
        if row is not None:
            self.app.push_screen(ValueReader(row.key, row.value))

    async def action_edit(self) -> None:
        row = self.row
        if row is None:
            return
        if row.value.type is ValueType.ARRAY:
            self.note(f"{row.key} is an array: only keys of one value can be set; x deletes it")
            return
        value = str(row.value.decode())
        if "\n" in value or len(value) > 500:
            self.note(f"{row.key} has {len(value)} characters: Enter reads it, f sets it from a file")
            return
        check = self._check(lambda text: with_text(self.session, row.key, text))
        hint = f"{row.value.type.name.lower()} · Enter set · Esc cancel"
        await self._ask(Prompt(row.key, check, value=value, hint=hint), lambda text: self._set(row.key, text))

    async def action_add(self) -> None:
        def parts(text: str) -> tuple[str, str]:
            key, equals, value = text.partition("=")
            if not equals:
                raise SurgeonError("KEY=VALUE, for instance general.author=me")
            return key.strip(), value

        def taken(text: str) -> None:
            self._set(*parts(text))

        check = self._check(lambda text: with_text(self.session, *parts(text)))
        hint = "KEY=VALUE: a number, true or false, or a text · Enter add · Esc cancel"
        await self._ask(Prompt("add a key", check, hint=hint), taken)

    async def action_from_file(self) -> None:
        row = self.row
        if row is None:
            return

        def plan(text: str) -> Plan:
            path = Path(text).expanduser()
            if not path.is_file():
                raise SurgeonError("is a folder: name a file in it" if path.is_dir() else "no such file")
            return with_text(self.session, row.key, text_of_file(path))

        folder = f"{self.session.model.file.path.absolute().parent}/"
        prompt = Prompt(
            f"{row.key} from a file", self._check(plan), value=folder, hint="UTF-8 text · Tab complete · ↑ earlier",
            endings=(".txt", ".jinja", ".jinja2", ".md", ".json"),
        )  # fmt: skip
        await self._ask(
            prompt, lambda text: self._change(lambda: plan(text), f"{row.key} from {Path(text).name}", row.key)
        )

    def action_delete(self) -> None:
        row = self.row
        if row is None:
            return
        key = row.key
        if row.state == "deleted":
            self._change(lambda: plans.with_key_as_stored(self.session.plan, key), f"{key} as stored", key)
        elif row.state == "new":
            self._change(lambda: plans.with_key_as_stored(self.session.plan, key), f"without {key}")
        else:
            self._change(lambda: plans.without_key(self.session.plan, key), f"delete {key}", key)

    def action_as_stored(self) -> None:
        row = self.row
        if row is not None:
            self._change(lambda: plans.with_key_as_stored(self.session.plan, row.key), f"{row.key} as stored", row.key)

    async def action_search(self) -> None:
        def taken(text: str) -> None:
            self.search = text.strip()
            self.show_keys()

        hint = "words in key or value · ~tmpl letters of the key in order · empty: all"
        await self._ask(Prompt("search", self._check_search, value=self.search, hint=hint), taken)

    def _check_search(self, text: str) -> tuple[bool, Line]:
        return True, [(figures.counted(len(key_rows(self.session, text)), "key"), "accent")]

    def action_undo(self) -> None:
        self._step(self.session.undo())

    def action_redo(self) -> None:
        self._step(self.session.redo())

    def _step(self, label: str | None) -> None:
        if label is not None:
            self.app.plan_changed()
            self.show_keys()

    # --- what they share

    def _check(self, made: Callable[[str], Plan]) -> Check:
        def check(text: str) -> tuple[bool, Line]:
            try:
                plan = made(text)
            except SurgeonError as error:
                return False, [(clean(str(error)), "muted")]
            changed = plan != self.session.plan
            return True, [("Enter sets it" if changed else "as it is", "accent" if changed else "muted")]

        return check

    async def _ask(self, prompt: Prompt, taken: Callable[[str], None]) -> None:
        prompt.answered = lambda text: taken(text) if text is not None else None
        await self.app.push_screen(prompt)

    def _set(self, key: str, text: str) -> None:
        self._change(lambda: with_text(self.session, key, text), f"{key} = {text:.40}", key)

    def _change(self, made: Callable[[], Plan], label: str, at: str | None = None) -> None:
        try:
            self.session.change(made(), label)
        except SurgeonError as error:
            self.note(str(error))
            return
        self.app.plan_changed()
        self.show_keys(at)


def key_line(row: KeyRow, wide: int, width: int) -> Line:
    """Sign, key, type, value; what was stored where that is another."""
    sign, role = _SIGNS[row.state]
    value = clean(row.value.brief())
    room = max(8, width - wide - 14)
    line: Line = [(sign, role), (fit(clean(row.key), wide), role), ("  ", "")]
    line.append((fit(row.value.type.name.lower(), 8) + " ", "muted"))
    if row.state == "deleted":
        return [*line, (fit(f"deleted: {value}", room).rstrip(), "pruned")]
    if row.stored is not None and row.now != row.stored:
        value = f"{clean(row.stored.brief())} → {value}"
    return [*line, (fit(value, room).rstrip(), "text" if row.state == "same" else role)]


class ValueReader(Reader):
    """One value whole, with line numbers where it has several."""

    def __init__(self, key: str, value: Value) -> None:
        size = figures.size(len(value.raw))
        super().__init__(clean(key), f"{value.type.name.lower()}, {size} · ↑ ↓ PgUp PgDn move · Esc close", tall=True)
        self.value = value

    def lines(self, width: int) -> list[Line]:
        found = list(whole_lines(self.value))
        numbered = self.value.type is ValueType.STRING and len(found) > 1
        lines: list[Line] = []
        for number, text in enumerate(found, start=1):
            first, *rest = folded(text, width - 6)
            lines.append([(f"{number:>4}  " if numbered else "", "faint"), (clean(first), "text")])
            lines += [[(" " * 6 if numbered else "  ", ""), (clean(piece), "text")] for piece in rest]
        return lines or wrap("empty", width, "muted")
