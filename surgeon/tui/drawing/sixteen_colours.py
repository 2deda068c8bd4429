"""The palettes in the sixteen colours of a terminal without 256: Rich's nearest ones would hide grey text.

Only colours 0-15 that terminals agree on are used, and none of the greys: bright black is the background in some.
"""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.color import Color as TextualColor
from textual.filter import LineFilter

from surgeon.tui.drawing.theme import DARK, LIGHT, Palette

_DARK = {
    "background": 0, "panel": 0, "raised": 0, "muted": 7, "faint": 7, "text": 15, "strong": 15, "accent": 14,
    "changed": 11, "pruned": 9, "warning": 11, "cursor": 4, "cursor_text": 15,
}  # fmt: skip
_LIGHT = {
    "background": 15, "panel": 15, "raised": 7, "muted": 0, "faint": 0, "text": 0, "strong": 0, "accent": 4,
    "changed": 5, "pruned": 1, "warning": 5, "cursor": 6, "cursor_text": 0,
}  # fmt: skip
_RAMPS = {DARK.name: (6, 6, 14, 10, 10), LIGHT.name: (6, 6, 4, 4, 0)}


_GROUNDS = ("background", "panel", "raised", "cursor")


def table(palette: Palette, *, grounds: bool = False) -> dict[str, int]:
    """`#rrggbb` of the palette -> colour 0-15.

    grounds: what a colour is behind text, where the user gave a ground and a text the same.
    """
    numbers = _DARK if palette.dark else _LIGHT
    found = dict(zip(palette.ramp, _RAMPS[palette.name], strict=True))
    # The last of equal colours counts.
    for name in sorted(numbers, key=lambda name: (name in _GROUNDS) == grounds):
        found[getattr(palette, name)] = numbers[name]
    return found


class SixteenColours(LineFilter):
    """Exchanges the colours of every line; those that are not the palette's are left to Rich."""

    def __init__(self, palette: Palette) -> None:
        super().__init__()
        self._words, self._grounds = table(palette), table(palette, grounds=True)
        self._exchanged = lru_cache(1024)(self._style)

    def apply(self, segments: list[Segment], background: TextualColor) -> list[Segment]:
        return [Segment(text, style and self._exchanged(style), control) for text, style, control in segments]

    def _style(self, style: Style) -> Style:
        word, ground = _exchanged(style.color, self._words), _exchanged(style.bgcolor, self._grounds)
        return style + Style(color=word, bgcolor=ground)


def _exchanged(colour: Color | None, numbers: dict[str, int]) -> Color | None:
    if colour is None or colour.triplet is None:
        return colour
    number = numbers.get(colour.triplet.hex)
    return colour if number is None else Color.from_ansi(number)
