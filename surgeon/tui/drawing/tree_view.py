"""The tree of layers and tensors: a Line API widget, because it redraws thousands of rows' window in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from surgeon.session.metrics import METRICS, Metric
from surgeon.session.rows import LayerRow, Row, TensorRow
from surgeon.session.session import Session, layer_key
from surgeon.tui.drawing.canvas import Painter, changed_region
from surgeon.tui.drawing.cells import DEFAULT_COLUMNS, NAME_LEAST, Layout, column_at, heads, layout, row_line
from surgeon.tui.drawing.spans import Line


class TreeView(ScrollView, can_focus=True):
    """Rows with a cursor. It knows no plan: the screen gives it rows, and hears of moves and `Chosen` from it."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"tree--cursor"}

    class Chosen(Message):
        """A click on the row under the cursor."""

    class Resized(Message):
        """The columns have other widths."""

    def __init__(self, session: Session, moved: Callable[[], None], *, name: str) -> None:
        """moved: called when the cursor stands on another row; what it draws is in the same paint as the rows, and not
        two frames later as what is drawn for a message."""
        super().__init__(id=name)
        self.session, self._moved = session, moved
        self.rows: list[Row] = []
        self.columns: tuple[str, ...] = DEFAULT_COLUMNS
        self.cursor = 0
        self._layout: Layout | None = None
        self._laid_out_for: object = None
        self.sort: str | None = None  # the column that orders the rows
        self._cached_painters: tuple[Painter, Painter] | None = None
        self._marked_layers: tuple[frozenset[str], frozenset[int]] = frozenset(), frozenset()
        self._drawn: dict[int, Line] = {}  # what each row said when it was last drawn

    # --- rows and cursor

    @property
    def row(self) -> Row | None:
        return self.rows[self.cursor] if self.rows else None

    def set_rows(self, rows: list[Row], follow: Iterable[str] = ()) -> None:
        """Show other rows; the cursor stays on its row, or goes to the first of `follow` that is there."""
        self.rows, before = rows, self.rows
        self._drawn.clear()
        self.virtual_size = Size(self.size.width, len(rows))
        self._scroll_update(self.virtual_size)  # the bar belongs to this paint; textual would draw it two frames later
        self.refresh()
        if not follow and self._key_of(rows) == self._key_of(before):
            self.show_cursor()
            return
        self.cursor = self._found(rows, before, follow)
        self.show_cursor()

    def _key_of(self, rows: list[Row]) -> list[str]:
        return [row.key for row in rows[self.cursor : self.cursor + 1]]

    def _found(self, rows: list[Row], before: list[Row], follow: Iterable[str]) -> int:
        """Where the cursor's row, its layer, or one of `follow` is among `rows`; else the nearest place."""
        wanted = self._key_of(before)
        row = before[self.cursor] if wanted else None
        if isinstance(row, TensorRow) and row.layer is not None:
            wanted.append(layer_key(row.layer))
        places = {row.key: index for index, row in enumerate(rows)}
        found = next((places[key] for key in (*follow, *wanted) if key in places), None)
        return found if found is not None else max(0, min(self.cursor, len(rows) - 1))

    def move(self, to: int) -> None:
        """The cursor to row `to`, as near as there is; only the two rows it leaves and enters are drawn again."""
        to = max(0, min(to, len(self.rows) - 1))
        if to == self.cursor or not self.rows:
            return
        old, self.cursor = self.cursor, to
        before = self.scroll_offset.y
        self.show_cursor()
        if self.scroll_offset.y == before:
            self.redraw_row(old)
            self.redraw_row(to)
        self._moved()

    def move_to_key(self, key: str) -> None:
        for index, row in enumerate(self.rows):
            if row.key == key:
                self.move(index)
                return

    def next_layer(self, step: int) -> int:
        """The place of the next or previous layer row (in flat order: the next row)."""
        at = self.cursor + step
        while 0 <= at < len(self.rows):
            if isinstance(self.rows[at], LayerRow):
                return at
            at += step
        return max(0, min(len(self.rows) - 1, at))

    @property
    def page(self) -> int:
        return max(1, self.scrollable_content_region.height - 1)

    def show_cursor(self) -> None:
        height = self.scrollable_content_region.height
        top = self.scroll_offset.y
        if height <= 0:
            return
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, force=True, immediate=True)

    def redraw_row(self, index: int) -> None:
        self.refresh(Region(0, index - self.scroll_offset.y, self.size.width, 1))

    def redraw(self) -> None:
        """After what the rows say may have changed: draw again the cells on the screen that differ."""
        top, width = self.scroll_offset.y, self.size.width
        for index in range(top, min(top + self.size.height, len(self.rows))):
            region = changed_region(self._drawn.get(index, []), self._line(index), index - top, width)
            if region is not None:
                self.refresh(region)

    # --- drawing

    @property
    def layout_(self) -> Layout:
        width = self.scrollable_content_region.width
        shown = tuple(key for key in self.columns if key not in METRICS or self._has_place(METRICS[key]))
        session = self.session
        least = NAME_LEAST + 3 if session.roles and session.plan.pruned else NAME_LEAST  # `blk.34 → 33  global`
        wanted = (width, shown, self.sort, least)
        if self._layout is None or self._laid_out_for != wanted:
            self._layout, self._laid_out_for = layout(width, shown, sort=self.sort, least=least), wanted
        return self._layout

    def _has_place(self, metric: Metric) -> bool:
        """Whether there are, or will be in a moment, values to show."""
        awaited = bool(metric.attribute) and self.session.imatrix is not None
        return awaited or self.session.measurements.known(metric)

    def set_columns(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._layout = None
        self.refresh()

    def heads(self, sort: str | None, descending: bool) -> Line:
        return heads(self.layout_, sort, descending)

    def column_at(self, x: int) -> str:
        """What a click on the line of titles at cell `x` means, for sorting."""
        return column_at(self.layout_, x)

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        width = self.size.width
        plain, under_cursor = self._painters()
        if index >= len(self.rows):
            return plain.paint(self._empty(index), width)
        line = self._drawn[index] = self._line(index)
        return (under_cursor if index == self.cursor else plain).paint(line, width)

    def _line(self, index: int) -> Line:
        row = self.rows[index]
        cursor = index == self.cursor
        marked = row.key in self.session.marks if isinstance(row, LayerRow) else self.session.is_marked(row.tensor)
        line = row_line(row, self.layout_, marked=marked, cursor=cursor)
        if isinstance(row, LayerRow) and not marked and row.layer in self._layers_with_marks():
            line[1] = ("○", "marked")  # on some of its tensors
        # Greys chosen for the dark background would sink into the cursor's.
        return [(text, "text" if role in ("muted", "faint") else role) for text, role in line] if cursor else line

    def _layers_with_marks(self) -> frozenset[int]:
        marks = self.session.marks
        if self._marked_layers[0] is not marks:
            tensors = (self.session.tensors.get(key) for key in marks)
            layers = frozenset(tensor.layer for tensor in tensors if tensor is not None and tensor.layer is not None)
            self._marked_layers = marks, layers
        return self._marked_layers[1]

    def _painters(self) -> tuple[Painter, Painter]:
        if self._cached_painters is None:
            theme, base = self.app.current_theme, self.rich_style
            cursor = self.get_component_rich_style("tree--cursor")
            self._cached_painters = (
                Painter(base, theme),
                Painter(base + Style(bgcolor=cursor.bgcolor, bold=True), theme),
            )
        return self._cached_painters

    def notify_style_update(self) -> None:
        self._cached_painters = None
        super().notify_style_update()

    def _empty(self, index: int) -> Line:
        return [("    nothing matches the filter; Esc clears it", "muted")] if index == 0 else []

    def on_resize(self, event: events.Resize) -> None:
        self.virtual_size = Size(self.size.width, len(self.rows))
        self._layout = None
        self.show_cursor()
        self.refresh()
        self.post_message(self.Resized())

    # --- the mouse is never needed, but works

    def on_click(self, event: events.Click) -> None:
        index = event.y + self.scroll_offset.y
        if index >= len(self.rows):
            return
        if index == self.cursor:
            self.post_message(self.Chosen())
        else:
            self.move(index)
