"""Codes of colours that are left out change nothing that is seen."""

from __future__ import annotations

import re

import pytest
from rich.color import ColorSystem
from rich.style import Style

from surgeon.tui.sparing import spared

WORDS = ("a", "bc", " ", "▅", "\x1b[2;1H")
STYLES = (
    "red on #262626", "white on #262626", "bold white on #262626", "color(79) on color(234)", "", "reverse", "dim",
    "bright_red", "on bright_blue", "underline bold", "#010203 on #040506",
)  # fmt: skip


@pytest.mark.parametrize("system", [ColorSystem.STANDARD, ColorSystem.EIGHT_BIT, ColorSystem.TRUECOLOR])
def test_the_same_is_seen(system: ColorSystem) -> None:
    drawn = "".join(
        Style.parse(style).render(word, color_system=system) + (word if style == "dim" else "")
        for style in STYLES * 2
        for word in WORDS
    )
    said = spared(drawn)
    assert len(said) < 0.75 * len(drawn)
    assert state_at_letters(said) == state_at_letters(drawn)


def state_at_letters(data: str) -> list[tuple[str, str, str, frozenset[str]]]:
    """A terminal's own reading: (letter, ink, ground, attributes)."""
    seen: list[tuple[str, str, str, frozenset[str]]] = []
    rest: set[str] = set()
    ink, ground = "39", "49"
    for code, letter in re.findall(r"\x1b\[([\d;]*)m|([^\x1b]|\x1b\[\d+;\d+H)", data):
        if letter:
            seen.append((letter, ink, ground, frozenset(rest)))
            continue
        for part in re.findall(r"[34]8;(?:5;\d+|2;\d+;\d+;\d+)|\d+", code or "0"):
            number = int(part.split(";")[0])
            if number == 0:
                ink, ground, rest = "39", "49", set()
            elif 30 <= number <= 39 or 90 <= number <= 97:
                ink = part
            elif 40 <= number <= 49 or 100 <= number <= 107:
                ground = part
            else:
                rest.add(part)
    return seen
