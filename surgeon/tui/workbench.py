"""The main screen's parts and how they are kept true to the session; the actions are in modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.screen import Screen
from textual.timer import Timer

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.model.model import Model
from surgeon.session.metrics import METRICS
from surgeon.session.rows import Row, TensorRow, View, visible_rows
from surgeon.session.session import Session, layer_key
from surgeon.tui.answers import remembered
from surgeon.tui.config import Config
from surgeon.tui.dialogs.base import Dialog
from surgeon.tui.dialogs.entry import one_line
from surgeon.tui.drawing import bars
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.cells import COLUMNS, DEFAULT_COLUMNS
from surgeon.tui.drawing.describe import describe
from surgeon.tui.drawing.spans import Line, clean, plain
from surgeon.tui.drawing.tree_view import TreeView
from surgeon.tui.host import Host
from surgeon.tui.keys import hints

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix

Answer = TypeVar("Answer")

WIDE = 124  # columns from which the detail pane stands beside the tree
DETAIL_DELAY = 0.08  # seconds the cursor must rest before the detail pane follows: a held key sends only two rows


class Workbench(Screen[None]):
    """Header, strip, tree, detail pane, key bar. State is in `session` (the plan) and `view` (how it is looked at)."""

    app: Host

    def __init__(self, session: Session, config: Config) -> None:
        super().__init__()
        self.session = session
        self.config = config
        self.view = View()
        self.metric = METRICS[config.metric]
        self.status = ""
        self._errors: dict[str, dict[str, float]] = {}
        self._errors_with: Imatrix | None = None
        self._detail_timer: Timer | None = None
        self._said: Timer | None = None
        self._message: Line = []
        self.count = ""  # digits typed before G
        self.range_from: str | None = None  # the row at which a range of marks begins
        self._marks_before: frozenset[str] = frozenset()
        self.compared: dict[str, dict[str, str]] = {}  # other models: file name -> tensor -> type

    def compose(self) -> ComposeResult:
        yield Canvas(self._header, name="header")
        yield Canvas(self._strip, name="strip")
        yield Canvas(self._heads, name="heads")
        with Horizontal(id="middle"):
            yield TreeView(self.session, self.moved, name="tree")
            yield Canvas(self._detail, name="detail")
        yield Canvas(self._bar, name="bar")

    def on_mount(self) -> None:
        # Before the first layout: a second one would be painted part by part.
        self.set_class(self.app.size.width < WIDE, "-narrow")
        self.tree_.columns = self.config.columns or self._last_columns()
        self.tree_.focus()
        layers = self.session.model.layers
        self.show_rows((layer_key(layers[0].index),) if layers else ())

    def _last_columns(self) -> tuple[str, ...]:
        """Those chosen the last time, without any that are not known here."""
        chosen = remembered(self.session.model.file.path, "columns", ("shown",)).get("shown", "").split()
        return tuple(key for key in dict.fromkeys(chosen) if key in COLUMNS) or DEFAULT_COLUMNS

    @property
    def tree_(self) -> TreeView:
        return self.query_one("#tree", TreeView)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files this session reads: nothing is ever saved over one of them."""
        session = self.session
        weighing = [one.path for one in (session.imatrix, session.moments) if one is not None]
        return (*(path for file in session.resolution.sources for path in file.paths), *weighing)

    @property
    def row(self) -> Row | None:
        return self.tree_.row

    @property
    def errors(self) -> dict[str, dict[str, float]]:
        """Relative errors measured with the present importance matrix: tensor name -> type name -> error."""
        if self._errors_with is not self.session.imatrix:
            self._errors, self._errors_with = {}, self.session.imatrix
        return self._errors

    @property
    def shown(self) -> frozenset[str]:
        """Names of the tensors that the filter leaves; empty without one."""
        found = self.view.filter
        if found is None:
            return frozenset()
        return frozenset(row.key for row in visible_rows(self.session, View(filter=found, flat=True)))

    def take_for_comparison(self, other: Model) -> None:
        """Another model's types, to be shown beside the plan's on the map."""
        self.compared[other.file.path.name] = {tensor.name: tensor.type_name for tensor in other.tensors}

    def go_to_layer(self, number: int) -> None:
        if number in self.session.tensors_of:
            self.tree_.move_to_key(layer_key(number))
        else:
            self.say(f"there is no layer {number}", "warning")

    # --- keys that hold until the next one, ranges of marks

    def on_key(self, event: events.Key) -> None:
        if event.character is not None and event.character in "0123456789" and len(self.count) < 9:
            event.stop()
            self.count += event.character
            self.query_one("#bar", Canvas).redraw()

    async def on_paste(self, event: events.Paste) -> None:
        """What is pasted is a rule or a command, never keys."""
        event.stop()
        text = one_line(event.text)
        if text:
            self.app.before_next_key(self.run_action(f"command({text!r})"))

    def key_done(self, key: str) -> None:
        """After each key: a number counts for the next key only, a range follows the cursor."""
        if self.count and not key.isdigit():
            self.count = ""
            self.query_one("#bar", Canvas).redraw()
        if self.range_from is not None and self.app.screen is self:
            self._follow_range()

    def begin_range(self, key: str) -> None:
        self.range_from, self._marks_before = key, self.session.marks
        self._follow_range()
        self.query_one("#bar", Canvas).redraw()

    def end_range(self, *, keep: bool = True) -> None:
        self.range_from = None
        if not keep:
            self.session.marks = self._marks_before
        self.tree_.redraw()
        self.show_rest()

    def _follow_range(self) -> None:
        """Mark all rows between the one at which the range began and the cursor."""
        rows = self.tree_.rows
        start = next((index for index, row in enumerate(rows) if row.key == self.range_from), None)
        if start is None:  # it was folded away
            self.end_range()
            return
        low, high = sorted((start, self.tree_.cursor))
        inside = rows[low : high + 1]
        # Of a layer that is open, its rows are marked one by one.
        keys = {row.key for row in inside if isinstance(row, TensorRow) or not row.unfolded}
        marks = self._marks_before | keys
        if marks != self.session.marks:
            self.session.marks = marks
            self.tree_.redraw()
            self.query_one("#header", Canvas).redraw()

    # --- keeping the screen true

    def show_rows(self, follow: tuple[str, ...] = ()) -> None:
        """After anything changed which rows there are or what they say."""
        self.tree_.set_rows(visible_rows(self.session, self.view), follow)
        self.show_rest()

    def show_rest(self) -> None:
        for name in ("header", "strip", "heads", "bar", "detail"):
            self.query_one(f"#{name}", Canvas).redraw()

    def plan_changed(self) -> None:
        if self.view.filter is None and self.view.sort is None:
            self.tree_.redraw()  # the rows are the same and look up what they say
            self.show_rest()
        else:
            self.show_rows()
        self.app.plan_changed()

    def change_plan(self, change: Callable[[], str]) -> None:
        """Run an edit that returns what to say of it; one that is refused is reported, and nothing has changed."""
        try:
            said = change()
        except SurgeonError as error:
            self.fail(error)
            return
        self.plan_changed()
        self.say(said)

    def look(self, **changes: object) -> None:
        """Another view of the same plan."""
        self.view = replace(self.view, **changes)  # type: ignore[arg-type]
        self.tree_.sort = self.view.sort
        self.show_rows()

    def moved(self) -> None:
        self.query_one("#strip", Canvas).redraw()
        if self._detail_timer is not None:
            self._detail_timer.stop()
        self._detail_timer = self.set_timer(DETAIL_DELAY, self.query_one("#detail", Canvas).redraw)

    def on_resize(self) -> None:
        self.set_class(self.app.size.width < WIDE, "-narrow")

    @on(TreeView.Resized)
    def titles_over_columns(self) -> None:
        self.query_one("#heads", Canvas).redraw()

    async def ask(self, dialog: Dialog[Answer], answered: Callable[[Answer | None], None] | None = None) -> None:
        """Open a dialog and wait until it has the focus, so that keys typed ahead go to it and not to the tree."""
        dialog.answered = answered
        await self.app.push_screen(dialog)

    # --- one line to the user

    def say(self, text: str, role: str = "text") -> None:
        """One line in place of the key bar, for a few seconds: no pop-up covers the tree."""
        if not self.is_attached:
            return
        self._message = [(f" {text}", role)]
        self.query_one("#bar", Canvas).redraw()
        if self._said is not None:
            self._said.stop()
        self._said = self.set_timer(6 if role == "pruned" else 3.5, self.unsay)

    def unsay(self) -> None:
        self._message = []
        self.query_one("#bar", Canvas).redraw()

    def show_status(self, text: str) -> None:
        """What runs in the background, in the header and the terminal's title."""
        self.status = text
        if not self.is_attached:  # of another model, not shown so far
            return
        self.query_one("#header", Canvas).redraw()
        if self.app.session is not self.session:
            return
        name = self.session.model.file.path.name
        self.app.beside.title(f"surgeon {name}{f' · {text}' if text else ''}")

    def fail(self, error: SurgeonError | ValueError) -> None:
        self.say(str(error), "pruned")

    @property
    def message(self) -> str:
        return plain(self._message).strip()

    # --- what the canvases draw

    def _header(self, width: int, height: int) -> list[Line]:
        return bars.header(self.session, self.status, width)

    def _strip(self, width: int, height: int) -> list[Line]:
        return [bars.strip(self.session, self.metric, self.row.layer if self.row else None, width)]

    def _heads(self, width: int, height: int) -> list[Line]:
        return [self.tree_.heads(self.view.sort, self.view.descending)]

    def _detail(self, width: int, height: int) -> list[Line]:
        row = self.row
        if row is None:
            return []
        return describe(row, self.metric, width, height, self.errors.get(row.key))

    def _bar(self, width: int, height: int) -> list[Line]:
        if self._message:
            return [self._message]
        if self.count:
            return [[(f" {self.count}", "strong"), ("   G", "key"), (" goes to that layer", "muted")]]
        if self.range_from is not None:
            return [_RANGE_BAR]
        if self.view.filter is not None:
            shown = len(self.tree_.rows)
            return [
                [
                    (" / ", "key"),
                    (clean(self.view.filter.text), "strong"),
                    (f"   {figures.counted(shown, 'row')}   ", "muted"),
                    ("Esc", "key"),
                    (" clears it", "muted"),
                ]
            ]
        return [bars.key_bar(self.hints, width)]

    @property
    def hints(self) -> list[bars.Hint]:
        return hints(self.config.keys, "imatrix" if self.session.imatrix is None else "")


_RANGE_BAR: Line = [
    (" range ", "strong"), ("  ↑ ↓ extend   ", "muted"), ("t", "key"), (" type  ", "muted"), ("p", "key"),
    (" prune  ", "muted"), ("v", "key"), (" keep the marks  ", "muted"), ("Esc", "key"), (" drop them", "muted"),
]  # fmt: skip
