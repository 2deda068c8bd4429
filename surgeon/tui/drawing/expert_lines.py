"""Experts × layers and the curve of what pruning them costs, as lines of spans. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surgeon import figures
from surgeon.session.experts.curve import ExpertCurve, ScanPoint
from surgeon.session.experts.grid import Grid
from surgeon.tui.drawing.scatter import Point, scatter
from surgeon.tui.drawing.spans import Line, fit

LABEL = 6  # cells of the layer numbers
# Signs of cells by code: five shades, pruned, half of them or more, never called, not measured, left out by the filter.
_PRUNED, _PARTLY, _IDLE, _UNKNOWN, _HIDDEN = 5, 6, 7, 8, 9
SIGNS = np.array(list(" ░▒▓█×/0?·"))
LEGEND = " ░▒▓█ low to high  × pruned  / partly  0 never called  ? unknown  · filtered"
# One colour for all shades: each change of colour costs the terminal more than the cell itself.
_ROLES = ("ramp3", "pruned", "warning", "faint")
_ROLE_OF = np.array([0, 0, 0, 0, 0, 1, 1, 2, 3, 3], np.uint8)


def codes(grid: Grid) -> NDArray[np.uint8]:
    """What every cell shows: places in SIGNS, the shape of the grid's matrices."""
    found = np.minimum(np.nan_to_num(grid.levels) * 5, 4).astype(np.uint8)
    found[grid.idle == grid.shown] = _IDLE
    found[np.isnan(grid.levels) & (grid.idle < grid.shown)] = _UNKNOWN
    found[grid.pruned >= 0.5] = _PARTLY
    found[grid.pruned == 1] = _PRUNED
    found[grid.shown == 0] = _HIDDEN
    return found


def row_line(grid: Grid, found: NDArray[np.uint8], row: int, cursor: int | None) -> Line:
    """One row of cells with the numbers of its layers; cursor: the column it is in, if it is in this row."""
    layers = grid.layers(row)
    label = str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
    here = cursor is not None
    line: Line = [(label[: LABEL - 1].rjust(LABEL - 1) + " ", "strong" if here else "muted")]
    if cursor is None:
        return line + _cells(found[row])
    sign = str(SIGNS[found[row, cursor]])
    return line + _cells(found[row, :cursor]) + [(sign, "map-here")] + _cells(found[row, cursor + 1 :])


def _cells(found: NDArray[np.uint8]) -> Line:
    """A run of one colour is one span."""
    if not len(found):
        return []
    roles, text = _ROLE_OF[found], "".join(SIGNS[found].tolist())
    starts = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist()]
    return [
        (text[start:end], _ROLES[roles[start]]) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    ]


def curve_lines(
    curve: ExpertCurve, by: str, now: tuple[float, ScanPoint | None], width: int, height: int
) -> list[Line]:
    """KL divergence over the share of experts pruned, its points below, and the layers alone where there is room.

    by: what ranked the experts; now: the share that the plan prunes, in percent, and what was measured of just that.
    """
    points = curve.of(by)
    table = [_point_line(point, width) for point in points]
    alone = _alone_lines(curve, width)
    rows = max(6, min(20, height - len(table) - len(alone) - 3))
    marks = [Point(0, 0, "·", True)] + [Point(point.share, point.kld, "●", True) for point in points]
    title = f"mean KLD over the share of each layer's experts silenced, least {_WORDS[by]} first"
    lines = scatter(marks, width, rows, title, lambda share: f"{share:.3g}%")
    lines += [*table, _now_line(now, points), *alone]
    return lines[:height]


_WORDS = {"saliency": "salient", "calls": "called"}


def _point_line(point: ScanPoint, width: int) -> Line:
    kld = f"{point.kld:.4f} ± {point.error:.4f}"
    text = f" {point.share:>5.3g}%   KLD {kld}   PPL {point.ppl:.4g}   same top {100 * point.same_top:.1f}%"
    return [(fit(text, width), "text")]


def _now_line(now: tuple[float, ScanPoint | None], points: list[ScanPoint]) -> Line:
    share, measured = now
    if share <= 0:
        return [(" the plan prunes none yet", "muted")]
    if measured is not None:
        return [(f" the plan, {share:.3g}%: KLD {measured.kld:.4f} ± {measured.error:.4f}, measured", "accent")]
    below = max((point.kld for point in points if point.share <= share), default=0.0)
    above = min((point.kld for point in points if point.share >= share), default=None)
    between = f"{below:.4f} to {above:.4f}" if above is not None else f"above {below:.4f}"
    return [(f" the plan, {share:.3g}%: not measured as it is; the curve there: {between}", "muted")]


def _alone_lines(curve: ExpertCurve, width: int) -> list[Line]:
    """Which layers bear it least, each silenced alone, highest first."""
    alone = sorted(curve.alone().values(), key=lambda point: -point.kld)
    if not alone:
        return []
    lines: list[Line] = [[(f" each layer alone, {alone[0].share:.3g}%, the highest first:", "head")]]
    most = max(point.kld for point in alone) or 1.0
    for point in alone[:8]:
        drawn = figures.bar(point.kld / most, max(4, width - 30))
        lines.append([(f" {point.layer:>4} {point.kld:10.5f} ", "text"), (drawn, "accent")])
    return lines
