"""Lines of styled text as plain data: what a widget draws, testable without a terminal.

A span is (text, role); roles are looked up in the theme. A line is a list of spans.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size

from surgeon.terminal import cell

Span = tuple[str, str]
Line = list[Span]

clean = cell  # a tensor name or a path may hold anything; what a terminal would obey is shown escaped


def width_of(line: Iterable[Span]) -> int:
    """Terminal cells the line takes."""
    return sum(cell_len(text) for text, _ in line)


def plain(line: Iterable[Span]) -> str:
    return "".join(text for text, _ in line)


def fit(text: str, width: int, align: str = "left") -> str:
    """`text` in exactly `width` cells: padded, or cut with an ellipsis."""
    if width <= 0:
        return ""
    length = len(text) if text.isascii() else cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    padding = " " * (width - length)
    return padding + text if align == "right" else text + padding


def elide_start(text: str, width: int) -> str:
    """`text` in at most `width` cells, its end kept: for paths, where the end says most."""
    if cell_len(text) <= width:
        return text
    return "…" + text[-(width - 1) :] if width > 1 else text[:width]


def fit_end(text: str, width: int, align: str = "left") -> str:
    """As `fit`, but cut at the start: for names of files and models that only their ends tell apart."""
    return fit(elide_start(text, width), width, align)


def spread(left: Line, right: Line, width: int) -> Line:
    """`left` and `right` at the two ends of a line of `width` cells; the left end is cut when both do not fit."""
    room = width - width_of(right)
    return [
        *cut(left, max(room - 1, 0)),
        *([] if room <= 0 else [(" " * (room - min(width_of(left), max(room - 1, 0))), "")]),
        *right,
    ]


def cut(line: Line, width: int) -> Line:
    """The line in at most `width` cells, with an ellipsis where something was left out."""
    out: Line = []
    left = width
    for text, role in line:
        length = cell_len(text)
        if length > left:
            if left > 0:
                out.append((fit(text, left), role))
            return out
        out.append((text, role))
        left -= length
    return out


def wrap(text: str, width: int, role: str = "", indent: str = "") -> list[Line]:
    """`text` broken at blanks into lines of at most `width` cells; later lines start with `indent`."""
    lines: list[Line] = []
    current = ""
    for word in text.split():
        candidate = f"{current} {word}" if current.strip() else f"{current}{word}"
        if cell_len(candidate) > width and current.strip():
            lines.append([(current, role)])
            current = indent + word
        else:
            current = candidate
    if current.strip():
        lines.append([(current, role)])
    return [cut(line, width) for line in lines]


def flow(items: Iterable[Line], width: int) -> list[Line]:
    """Items one after the other, as many to a line of `width` cells as fit."""
    lines: list[Line] = []
    used = width
    for item in items:
        need = width_of(item)
        if used + need > width:
            lines.append([])
            used = 0
        lines[-1] += item
        used += need
    return [cut(line, width) for line in lines]
