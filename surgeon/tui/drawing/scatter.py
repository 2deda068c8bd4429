"""Trials as points of size against a figure, with the front drawn as a line of braille dots. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from surgeon import figures
from surgeon.tui.drawing.spans import Line

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, by row and column
_AXIS = 9  # cells of the labels at the left


@dataclass(frozen=True)
class Point:
    """x: bytes, or what the plot says; y: the figure; letter: its sign; front: no other beats it; here: chosen."""

    x: float
    y: float
    letter: str
    front: bool = False
    best: bool = False
    here: bool = False


def scatter(
    points: Sequence[Point],
    width: int,
    height: int,
    title: str,
    across: Callable[[float], str] = figures.size,
    *,
    mark: float | None = None,
) -> list[Line]:
    """A plot of `width` × `height` cells with both axes; the y axis is logarithmic where values span a decade.

    across: how the ends of the x axis are written; mark: a place on it, shown as ▲.
    """
    columns, rows = max(8, width - _AXIS - 1), max(3, height - 3)
    logarithmic = _logarithmic([point.y for point in points])
    x_range = _range([*(point.x for point in points), *((mark,) if mark is not None else ())], False)
    y_range = _range([point.y for point in points], logarithmic)

    def dot(x: float, y: float) -> tuple[int, int]:
        right, up = _place(x, x_range, False), _place(y, y_range, logarithmic)
        return round(right * (2 * columns - 1)), round((1 - up) * (4 * rows - 1))

    def cell(x: float, y: float) -> tuple[int, int]:
        """That of the dot, so that a sign stands on its line."""
        column, row = dot(x, y)
        return column // 2, row // 4

    dots: dict[tuple[int, int], int] = {}
    corners = [dot(point.x, point.y) for point in sorted(points, key=lambda p: p.x) if point.front]
    for start, end in pairwise(corners):
        for column, row in _segment(start, end):
            key = (column // 2, row // 4)
            dots[key] = dots.get(key, 0) | _DOTS[row % 4][column % 2]
    signs = {cell(point.x, point.y): point for point in points}
    lines: list[Line] = [[(title + (", logarithmic" if logarithmic else ""), "head")]]
    for row in range(rows):
        lines.append([(_label(row, rows, y_range, logarithmic), "faint"), *_row(row, columns, dots, signs)])
    axis = list("└" + "─" * (columns - 1))
    at = cell(mark, points[0].y)[0] if mark is not None and points else None
    if at is None:
        lines.append([(" " * _AXIS + "".join(axis), "faint")])
    else:
        before, after = "".join(axis[: at + 1]), "".join(axis[at + 2 :])
        lines.append([(" " * _AXIS + before, "faint"), ("▲", "changed"), (after, "faint")])
    low, high = across(x_range[0]), across(x_range[1])
    lines.append([(" " * (_AXIS + 1) + low + high.rjust(max(1, columns - 1 - len(low))), "faint")])
    return lines


def _row(row: int, columns: int, dots: dict[tuple[int, int], int], signs: dict[tuple[int, int], Point]) -> Line:
    line: Line = [("│", "faint")]
    for column in range(columns):
        point, left, right = (signs.get((column + by, row)) for by in (0, 1, -1))
        if point is not None:
            role = "map-here" if point.here else "changed" if point.best else "accent" if point.front else "text"
            line.append((point.letter, role))
        elif (left is not None and left.here) or (right is not None and right.here):
            line.append(("[" if left is not None and left.here else "]", "changed"))
        else:
            bits = dots.get((column, row), 0)
            line.append((chr(0x2800 + bits) if bits else " ", "muted"))
    return line


def _logarithmic(values: Sequence[float]) -> bool:
    least = min(values, default=0.0)
    return least > 0 and max(values) / least >= 10


def _range(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """A little more than the values span, and something where all are the same."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if logarithmic:
        return low / 1.1, high * 1.1
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return max(0.0, low - margin), high + margin


def _place(value: float, limits: tuple[float, float], logarithmic: bool) -> float:
    low, high = (math.log10(limit) for limit in limits) if logarithmic else limits
    value = math.log10(value) if logarithmic else value
    return (value - low) / (high - low)


def _label(row: int, rows: int, limits: tuple[float, float], logarithmic: bool) -> str:
    """The value at the top, in the middle and at the bottom of the axis."""
    if row not in (0, rows // 2, rows - 1):
        return " " * _AXIS
    part = 1 - row / (rows - 1)
    low, high = (math.log10(limit) for limit in limits) if logarithmic else limits
    value = low + part * (high - low)
    return figures.figure(10**value if logarithmic else value)[: _AXIS - 1].rjust(_AXIS - 1) + " "


def _segment(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            round(start[0] + (end[0] - start[0]) * step / steps),
            round(start[1] + (end[1] - start[1]) * step / steps),
        )
        for step in range(steps + 1)
    ]
