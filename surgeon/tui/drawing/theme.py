"""Colours, all taken from the xterm-256 table, so that every terminal shows the same picture.

Rich's own downgrade from true colour snaps to the 6x6x6 cube and collapses close dark shades; colours that lie in
the table survive it. Red means pruned or failed and nothing else, and no meaning rests on colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style
from textual.theme import Theme


def xterm(number: int) -> str:
    """`#rrggbb` of colour 16-255 of the xterm table.

    Above 246 Rich rounds a grey one step down when it reduces to 256 colours; one unit more makes it come out right.
    """
    if number >= 232:
        level = 8 + 10 * (number - 232) + (2 if number > 246 else 0)
        return f"#{level:02x}{level:02x}{level:02x}"
    steps = (0, 95, 135, 175, 215, 255)
    red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return f"#{steps[red]:02x}{steps[green]:02x}{steps[blue]:02x}"


@dataclass(frozen=True)
class Palette:
    """Colour numbers of one theme; ramp: five steps for metrics, low to high."""

    name: str
    dark: bool
    background: int
    panel: int
    raised: int
    muted: int
    faint: int
    text: int
    strong: int
    accent: int
    changed: int
    pruned: int
    warning: int
    cursor: int
    cursor_text: int
    ramp: tuple[int, int, int, int, int]


# Every foreground has a contrast of 3:1 or more on every background, the cursor's too (WCAG's for large text).
DARK = Palette(
    "surgeon-dark", True, 234, 235, 236, 248, 244, 253, 255, 79, 215, 203, 221, 18, 255, (67, 73, 79, 114, 150)
)
LIGHT = Palette(
    "surgeon-light", False, 255, 254, 252, 239, 242, 236, 232, 28, 130, 160, 94, 189, 232, (67, 31, 30, 23, 22)
)


def styles(palette: Palette) -> dict[str, Style]:
    """Role -> style, foreground only: the background is the widget's."""
    colours = {
        "": palette.text,
        "text": palette.text,
        "muted": palette.muted,
        "faint": palette.faint,
        "strong": palette.strong,
        "accent": palette.accent,
        "changed": palette.changed,
        "pruned": palette.pruned,
        "warning": palette.warning,
        "head": palette.muted,
        "marked": palette.changed,
        "good": palette.accent,
        "key": palette.accent,
        "title": palette.strong,
        **{f"ramp{step}": colour for step, colour in enumerate(palette.ramp)},
    }
    bold = {"strong", "title", "key", "marked"}
    found = {role: Style(color=xterm(colour), bold=role in bold or None) for role, colour in colours.items()}
    found["strip-here"] = Style(color=xterm(palette.changed), bgcolor=xterm(palette.cursor), bold=True)
    found["strip-pruned-here"] = Style(color=xterm(palette.pruned), bgcolor=xterm(palette.cursor), bold=True)
    found["strip-scope"] = Style(color=xterm(palette.cursor_text), bgcolor=xterm(palette.cursor), bold=True)
    # Reversed and underlined, so that they are seen without colours too.
    found["map-here"] = Style(color=xterm(palette.changed), bgcolor=xterm(palette.background), bold=True, reverse=True)
    found["map-range"] = Style(color=xterm(palette.cursor_text), bgcolor=xterm(palette.cursor), underline=True)
    return found


def theme(palette: Palette) -> Theme:
    """The textual theme of a palette; the dialogs' widgets take their colours from it."""
    return Theme(
        name=palette.name,
        dark=palette.dark,
        primary=xterm(palette.accent),
        secondary=xterm(palette.cursor),
        accent=xterm(palette.accent),
        warning=xterm(palette.warning),
        error=xterm(palette.pruned),
        success=xterm(palette.accent),
        foreground=xterm(palette.text),
        background=xterm(palette.background),
        surface=xterm(palette.panel),
        panel=xterm(palette.raised),
        text_alpha=1.0,
        variables={
            "muted": xterm(palette.muted),
            "faint": xterm(palette.faint),
            "strong": xterm(palette.strong),
            "changed": xterm(palette.changed),
            "pruned": xterm(palette.pruned),
            "cursor": xterm(palette.cursor),
            "cursor-text": xterm(palette.cursor_text),
            "raised": xterm(palette.raised),
            "border": xterm(palette.accent),
            "border-blurred": xterm(palette.faint),
            "block-cursor-background": xterm(palette.cursor),
            "block-cursor-foreground": xterm(palette.cursor_text),
            "block-cursor-text-style": "bold",
            "block-cursor-blurred-background": xterm(palette.cursor),
            "block-cursor-blurred-foreground": xterm(palette.cursor_text),
            "block-hover-background": xterm(palette.raised),
            "scrollbar": xterm(palette.faint),
            "scrollbar-hover": xterm(palette.muted),
            "scrollbar-active": xterm(palette.accent),
            "scrollbar-background": xterm(palette.background),
            "scrollbar-background-hover": xterm(palette.background),
            "scrollbar-background-active": xterm(palette.background),
            "scrollbar-corner-color": xterm(palette.background),
            "input-cursor-background": xterm(palette.text),
            "input-cursor-foreground": xterm(palette.background),
            "input-selection-background": xterm(palette.cursor),
        },
    )
