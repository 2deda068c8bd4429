"""The ASCII glyph set: every sign the screen draws has one ASCII sign of the same width, exchanged on the way out."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_PAIRS = {
    "▸▾": "+-",
    "▌▎│┃║": "|||||",
    "─━═╌": "---=",
    "┌┐└┘╭╮╰╯├┤┬┴┼┏┓┗┛": "+" * 17,
    "✗✓●○•": "xv*o*",
    "→←↑↓▼▲": "><^vv^",
    "×·–—…≡≥≤≈±−": "x.--~=><~~-",
    "ΣμσΔ": "Susd",
    "◆≠": "#!",
    "²⏎": "2$",
    "▁▂▃▄▅▆▇█": ".:-=+*#@",
    "▏▍▋▊▉▐░▒▓": "-=###|.:%",
    "▔▀▖▗▘▝▛▜▙▟": "-" * 10,
    "╸╺": "--",
    "’“”": '\'""',
}
_PARTS = frozenset("▁▂▃▄▅▆▇")
_BRAILLE = {0x2800: " "} | dict.fromkeys(range(0x2801, 0x2900), ".")  # the lines of plots
TABLE = _BRAILLE | str.maketrans(
    {sign: other for signs, others in _PAIRS.items() for sign, other in zip(signs, others, strict=True)}
)


def to_ascii(text: str) -> str:
    """`text` with our signs exchanged; a letter that is not ours (in a file's name) stays as it is."""
    return text.translate(TABLE)


class AsciiFilter(LineFilter):
    """Exchanges the signs of every line that textual draws, its own borders and bars included."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(_exchanged(text, style), style, control) for text, style, control in segments]


def _exchanged(text: str, style: Style | None) -> str:
    """The ends of textual's scroll bars are parts of a cell; as signs they would look like letters of the row."""
    if text in _PARTS and style is not None and "@mouse.down" in style.meta:
        return " "
    return to_ascii(text)
