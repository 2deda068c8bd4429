"""Widgets that draw lines of spans, and send to the terminal only what changed."""

from __future__ import annotations

from collections.abc import Callable

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.theme import Theme
from textual.widget import Widget

from surgeon.tui.drawing.spans import Line, clean, width_of
from surgeon.tui.drawing.theme import role_styles

Draw = Callable[[int, int], list[Line]]


class Painter:
    """Turns lines into what textual draws, on one background; looking styles up per line would cost more than that."""

    def __init__(self, base: Style, theme: Theme) -> None:
        self.base = base
        self._styles = {role: base + style for role, style in role_styles(theme).items()}

    def paint(self, line: Line, width: int) -> Strip:
        """Exactly `width` cells."""
        styles, base = self._styles, self.base
        segments = [Segment(text, styles.get(role, base)) for text, role in merged(line)]
        return Strip(segments).adjust_cell_length(width, base)


_OWN_GROUND = ("strip", "map-")  # roles with a background of their own: other blanks are not theirs


def merged(line: Line) -> Line:
    """The line with blanks drawn in the role before them: every change of style costs 25 bytes on the wire.

    Every widget's lines pass here, so here nothing that the terminal would obey is left.
    """
    out: Line = []
    for text, role in line:
        if not text:
            continue
        text = clean(text)
        blank = text.isspace() and not role.startswith(_OWN_GROUND)
        if out and (role == out[-1][1] or blank) and not out[-1][1].startswith(_OWN_GROUND):
            out[-1] = (out[-1][0] + text, out[-1][1])
        else:
            out.append((text, role))
    return out


def changed_region(old: Line, new: Line, y: int, width: int) -> Region | None:
    """The cells of line `y` in which two lines differ; None when they do not."""
    if old == new:
        return None
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    left, changed = width_of(new[:start]), width_of(new[start : len(new) - end])
    if width_of(old[start : len(old) - end]) != changed:
        return Region(left, y, width - left, 1)
    return Region(left, y, max(1, min(width - left, changed)), 1)


class Canvas(Widget):
    """Shows what `draw(width, height)` returns; `redraw` compares and refreshes the cells that changed."""

    def __init__(self, draw: Draw, *, name: str) -> None:
        super().__init__(id=name)
        self._draw = draw
        self._lines: list[Line] | None = None
        self._drawn_for = (0, 0)
        self._painter: Painter | None = None

    @property
    def lines(self) -> list[Line]:
        size = (self.size.width, self.size.height)
        if self._lines is None or self._drawn_for != size:
            self._drawn_for = size
            self._lines = self._draw(*size)
        return self._lines

    def redraw(self) -> None:
        old, (width, height) = self._lines, self._drawn_for
        if old is None or (self.size.width, self.size.height) != (width, height):
            self._lines = None
            self.refresh()
            return
        new = self._lines = self._draw(width, height)
        blank: Line = []
        for y in range(max(len(old), len(new))):
            region = changed_region(
                old[y] if y < len(old) else blank, new[y] if y < len(new) else blank, y, self.size.width
            )
            if region is not None:
                self.refresh(region)

    def render_line(self, y: int) -> Strip:
        lines = self.lines
        line = lines[y] if y < len(lines) else []
        if self._painter is None:
            self._painter = Painter(self.rich_style, self.app.current_theme)
        return self._painter.paint(line, self.size.width)

    def notify_style_update(self) -> None:
        self._lines = self._painter = None
        super().notify_style_update()
