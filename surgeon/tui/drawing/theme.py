"""Colours, ours all taken from the xterm-256 table, so that every terminal shows the same picture.

Rich's own downgrade from true colour snaps to the 6x6x6 cube and collapses close dark shades; colours that lie in
the table survive it. Red means pruned or failed and nothing else, and no meaning rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, cast

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
    """Colours of one theme, `#rrggbb`; ramp: five steps for metrics, low to high."""

    name: str
    dark: bool
    background: str
    panel: str
    raised: str
    muted: str
    faint: str
    text: str
    strong: str
    accent: str
    changed: str
    pruned: str
    warning: str
    cursor: str
    cursor_text: str
    ramp: tuple[str, ...]


_PLAIN_ROLES = tuple(field.name for field in fields(Palette) if field.name not in ("name", "dark", "ramp"))
_RAMP_ROLES = tuple(f"ramp{step}" for step in range(5))
ROLES = (*_PLAIN_ROLES, *_RAMP_ROLES)
"""What the user may give a colour."""


def _palette(name: str, dark: bool, colours: tuple[int, ...], ramp: tuple[int, ...]) -> Palette:
    """Of numbers of the xterm table, in the order of the roles."""
    plain: dict[str, Any] = dict(zip(_PLAIN_ROLES, map(xterm, colours), strict=True))
    return Palette(name, dark, **plain, ramp=tuple(map(xterm, ramp)))


# Every foreground has a contrast of 3:1 or more on every background, the cursor's too (WCAG's for large text).
DARK = _palette(
    "surgeon-dark", True, (234, 235, 236, 248, 244, 253, 255, 79, 215, 203, 221, 18, 255), (67, 73, 79, 114, 150)
)
LIGHT = _palette(
    "surgeon-light", False, (255, 254, 252, 239, 242, 236, 232, 28, 130, 160, 94, 189, 232), (67, 31, 30, 23, 22)
)


def palette_of(name: str, colours: Mapping[str, str]) -> Palette:
    """The palette of the theme `name`, dark or light, with the user's `colours`: role -> `#rrggbb`."""
    base = LIGHT if name == "light" else DARK
    own: dict[str, Any] = {role: colour.lower() for role, colour in colours.items()}  # as Rich writes them
    ramp = tuple(own.pop(role, colour) for role, colour in zip(_RAMP_ROLES, base.ramp, strict=True))
    return replace(base, ramp=ramp, **own)


@lru_cache(4)
def styles(palette: Palette) -> Mapping[str, Style]:
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
        **dict(zip(_RAMP_ROLES, palette.ramp, strict=True)),
    }
    bold = {"strong", "title", "key", "marked"}
    found = {role: Style(color=colour, bold=role in bold or None) for role, colour in colours.items()}
    found["strip-here"] = Style(color=palette.changed, bgcolor=palette.cursor, bold=True)
    found["strip-pruned-here"] = Style(color=palette.pruned, bgcolor=palette.cursor, bold=True)
    found["strip-scope"] = Style(color=palette.cursor_text, bgcolor=palette.cursor, bold=True)
    # Reversed and underlined, so that they are seen without colours too.
    found["map-here"] = Style(color=palette.changed, bgcolor=palette.background, bold=True, reverse=True)
    found["map-range"] = Style(color=palette.cursor_text, bgcolor=palette.cursor, underline=True)
    return found


@dataclass
class PaletteTheme(Theme):
    """The textual theme of a palette; the dialogs' widgets take their colours from it."""

    palette: Palette = DARK


def role_styles(theme: Theme) -> Mapping[str, Style]:
    """Role -> style of the application's theme."""
    return styles(cast("PaletteTheme", theme).palette)


def theme_of(palette: Palette) -> PaletteTheme:
    return PaletteTheme(
        palette=palette,
        name=palette.name,
        dark=palette.dark,
        primary=palette.accent,
        secondary=palette.cursor,
        accent=palette.accent,
        warning=palette.warning,
        error=palette.pruned,
        success=palette.accent,
        foreground=palette.text,
        background=palette.background,
        surface=palette.panel,
        panel=palette.raised,
        text_alpha=1.0,
        variables={
            "muted": palette.muted,
            "faint": palette.faint,
            "strong": palette.strong,
            "changed": palette.changed,
            "pruned": palette.pruned,
            "cursor": palette.cursor,
            "cursor-text": palette.cursor_text,
            "raised": palette.raised,
            "border": palette.accent,
            "border-blurred": palette.faint,
            "block-cursor-background": palette.cursor,
            "block-cursor-foreground": palette.cursor_text,
            "block-cursor-text-style": "bold",
            "block-cursor-blurred-background": palette.cursor,
            "block-cursor-blurred-foreground": palette.cursor_text,
            "block-hover-background": palette.raised,
            "scrollbar": palette.faint,
            "scrollbar-hover": palette.muted,
            "scrollbar-active": palette.accent,
            "scrollbar-background": palette.background,
            "scrollbar-background-hover": palette.background,
            "scrollbar-background-active": palette.background,
            "scrollbar-corner-color": palette.background,
            "input-cursor-background": palette.text,
            "input-cursor-foreground": palette.background,
            "input-selection-background": palette.cursor,
        },
    )
