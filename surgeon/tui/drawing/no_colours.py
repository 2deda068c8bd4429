"""The screen without colours, for NO_COLOR: what a ground said is said by reversing, what is faint is dim.

Textual's own filter gives greys, in which a cursor's ground is hardly to be told from the others.
"""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.color import Color as TextualColor
from textual.filter import LineFilter

from surgeon.tui.drawing.theme import Palette


class NoColours(LineFilter):
    def __init__(self, palette: Palette) -> None:
        super().__init__()
        # Grounds of the line under a cursor, and of the cursor in a field.
        self._cursors, self._faint = {palette.cursor, palette.text}, palette.faint
        self._plain = lru_cache(1024)(self._style)

    def apply(self, segments: list[Segment], background: TextualColor) -> list[Segment]:
        return [Segment(text, style and self._plain(style), control) for text, style, control in segments]

    def _style(self, style: Style) -> Style:
        # What is underlined is seen by that: the cursor inside a range must differ from the range.
        cursor = _hex(style.bgcolor) in self._cursors and not style.underline
        return Style(
            bold=style.bold,
            italic=style.italic,
            underline=style.underline,
            reverse=cursor or style.reverse or None,
            dim=style.dim or _hex(style.color) == self._faint or None,
        )


def _hex(colour: Color | None) -> str:
    return "" if colour is None or colour.triplet is None else colour.triplet.hex
