"""A picture of a terminal as PNG, from the SVG that textual exports: alike in every viewer, whatever fonts it has.

Letters come from DejaVu Sans Mono. Blocks, bars and braille dots are drawn as shapes, so that neighbours meet without
seams and no font needs to have them.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

try:
    from PIL import Image, ImageColor, ImageDraw, ImageFont
except ImportError:
    sys.exit("the PNGs are drawn with pillow: pip install 'pillow>=11', the extra `screenshots`")

WIDE, TALL, BASELINE = 12, 24, 19  # pixels of a character, and where it stands
MARGIN, TITLE = 10, 40  # pixels around the terminal, and above it for the title
SIZE = 20  # pixels of the font, whose letters are then 12 wide
COLOURS = 256  # of the palette, edges of letters included
FONTS = {False: "DejaVuSansMono.ttf", True: "DejaVuSansMono-Bold.ttf"}  # by whether it is bold
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts",
           "~/Library/Fonts", "/opt/homebrew/share/fonts")  # fmt: skip
SVG_WIDE, SVG_TALL, SVG_SIZE = 12.2, 24.4, 20  # what rich gives a character, and its font
_SVG = "{http://www.w3.org/2000/svg}"
_BELOW, _LEFT = "▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉"  # filled by eighths
_SHADES = {"░": 0.3, "▒": 0.55, "▓": 0.8}
_BRAILLE = 0x2800
_DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # column and row by bit


@dataclass(frozen=True)
class Style:
    colour: str
    bold: bool


def png(svg: str) -> bytes:
    """The picture as a PNG with a palette. Ends the program where the font is missing."""
    root = ElementTree.fromstring(svg)
    clip = next(rect for path in root.iter(f"{_SVG}clipPath") for rect in path)
    columns, rows = round(_number(clip, "width") / SVG_WIDE), round(_number(clip, "height") / SVG_TALL)
    image = Image.new("RGB", (columns * WIDE + 2 * MARGIN, rows * TALL + TITLE + MARGIN), _frame(root))
    pairs = _draw(image, root, _styles(svg))
    out = io.BytesIO()
    image.quantize(palette=_palette(pairs), dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _palette(pairs: set[tuple[str, str]]) -> Image.Image:
    """Every colour as it is, and between letters and their grounds as many steps as there is room for."""
    colours = dict.fromkeys(ImageColor.getrgb(colour)[:3] for pair in sorted(pairs) for colour in pair)
    steps = max(1, (COLOURS - len(colours)) // len(pairs))
    for ink, ground in sorted(pairs):
        for step in range(1, steps + 1):
            colours[_mixed(ink, ground, step / (steps + 1))] = None
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in list(colours)[:COLOURS] for part in colour])
    return palette


def _mixed(ink: str, ground: str, part: float) -> tuple[int, ...]:
    """So much of the one over the other."""
    both = zip(ImageColor.getrgb(ink), ImageColor.getrgb(ground), strict=True)
    return tuple(round(part * over + (1 - part) * under) for over, under in both)


def _draw(image: Image.Image, root: ElementTree.Element, styles: dict[str, Style]) -> set[tuple[str, str]]:
    """Draw the terminal; the pairs of colours of its letters and what they stand on."""
    draw, grounds = ImageDraw.Draw(image), dict[tuple[int, int], str]()
    pairs = {("#c5c8c6", _frame(root))}  # of the title
    for rect in root.iter(f"{_SVG}rect"):
        if rect.get("shape-rendering") and _number(rect, "width"):  # the ground of a run of characters
            column, row = _column(rect), round((_number(rect, "y") - 1.5) / SVG_TALL)
            wide, colour = round(_number(rect, "width") / SVG_WIDE), rect.get("fill", "")
            _box(draw, (column, row), colour, right=wide)
            grounds |= dict.fromkeys(((at, row) for at in range(column, column + wide)), colour)
    for text in root.iter(f"{_SVG}text"):
        name, words = text.get("class", ""), (text.text or "").replace("\xa0", " ")
        if name.endswith("-title"):
            draw.text((image.width // 2, TITLE // 2), words, text.get("fill"), _font(True), anchor="mm")
            continue
        row = round((_number(text, "y") - SVG_SIZE) / SVG_TALL)
        for column, letter in enumerate(words, _column(text)):
            style = styles[name]
            ground = grounds.get((column, row), _frame(root))
            _letter(draw, letter, (column, row), style, ground)
            if letter != " ":
                pairs.add((style.colour, ground))
    return pairs


def _letter(draw: ImageDraw.ImageDraw, letter: str, place: tuple[int, int], style: Style, ground: str) -> None:
    """A character as a shape where it is one, else as a letter."""
    if letter in _BELOW:
        _box(draw, place, style.colour, top=1 - (_BELOW.index(letter) + 1) / 8)
    elif letter in _SHADES:
        _box(draw, place, _mixed(style.colour, ground, _SHADES[letter]))
    elif letter in _LEFT:
        _box(draw, place, style.colour, right=(_LEFT.index(letter) + 1) / 8)
    elif _BRAILLE <= ord(letter) < _BRAILLE + 256:
        left, top = _corner(place)
        for bit, (column, row) in enumerate(_DOTS):
            if ord(letter) - _BRAILLE >> bit & 1:
                x, y = left + (2 * column + 1) * WIDE // 4, top + (2 * row + 1) * TALL // 8
                draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), style.colour)
    elif letter != " ":
        left, top = _corner(place)
        draw.text((left, top + BASELINE), letter, style.colour, _font(style.bold), anchor="ls")


def _box(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    colour: str | tuple[int, ...],
    *,
    top: float = 0.0,
    right: float = 1.0,
) -> None:
    """A rectangle of a cell: from the part `top` of its height down, to the part (or number) `right` of its width."""
    x, y = _corner(place)
    draw.rectangle((x, y + round(top * TALL), x + round(right * WIDE) - 1, y + TALL - 1), colour)


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return MARGIN + place[0] * WIDE, TITLE + place[1] * TALL


def _column(element: ElementTree.Element) -> int:
    return round(_number(element, "x") / SVG_WIDE)


def _number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "0"))


def _frame(root: ElementTree.Element) -> str:
    """The colour of the window."""
    return next(rect.get("fill", "") for rect in root.iter(f"{_SVG}rect") if rect.get("rx"))


def _styles(svg: str) -> dict[str, Style]:
    """Class -> colour and weight."""
    found = re.findall(r"\.([\w-]+-r\d+) \{ fill: (#\w+);?([^}]*)\}", svg)
    return {name: Style(colour, "bold" in rest) for name, colour, rest in found}


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    name = FONTS[bold]
    for folder in FOLDERS:
        for path in sorted(Path(folder).expanduser().rglob(name)):
            return ImageFont.truetype(path, SIZE)
    sys.exit(f"the PNGs need {name}: install DejaVu (Debian: fonts-dejavu-core, macOS: font-dejavu)")
