"""The lines of the fit dialog: outcome, where the bytes are, the curve of divergence over size, the next best
bytes, and which parts are fragile."""

from __future__ import annotations

import math
from collections.abc import Sequence

from surgeon import figures
from surgeon.fit.allocation import Fit, Mixed, improvements, shares
from surgeon.fit.fragility import Part, by_kind, types_of, weights_unit
from surgeon.trials.journal import Trial
from surgeon.tui.drawing.scatter import LETTERS, Point, scatter
from surgeon.tui.drawing.spans import Line, clean, cut, flow
from surgeon.tui.drawing.spans import fit as fitted

_KIND = 16  # cells of a kind's name
_CUT: Line = [("… ", "faint")]
# Neighbours differ without colours, too.
_FILLS = tuple(zip("█▒▓░█▒▓░", ("ramp4", "ramp2", "ramp3", "ramp1", "muted", "ramp0", "text", "faint"), strict=True))


def outcome_lines(fit: Fit, mix: Mixed | None) -> list[Line]:
    """Size and predicted divergence of the fit, and of the best mix in as many bytes."""
    lines = [_outcome("fit", fit.resolution.total_bytes, fit.resolution.bpw, fit.predicted.kld, fit.predicted.error)]
    if mix is not None:
        made, predicted = mix.resolution, mix.predicted
        lines.append(_outcome(mix.name, made.total_bytes, made.bpw, predicted.kld, predicted.error))
    return lines


def _outcome(name: str, nbytes: int, bpw: float, kld: float, error: float) -> Line:
    return [
        (fitted(name, 9), "strong" if name == "fit" else "muted"),
        (figures.size(nbytes).rjust(9), "text"),
        (f"{bpw:6.2f} bpw", "muted"),
        ("   predicted KLD ", "muted"),
        (figures.divergence(kld), "strong" if name == "fit" else "text"),
        (f" ± {figures.divergence(error)}", "muted"),
    ]


def bytes_lines(fit: Fit, width: int, most: int) -> list[Line]:
    """A bar of all bytes by kind, the largest first, and what its parts are in at most so many lines."""
    parts = sorted(((nbytes, kind, weights) for kind, (weights, nbytes, _, _) in shares(fit).items()), reverse=True)
    total = sum(nbytes for nbytes, _, _ in parts)
    bar: Line = []
    legend: list[Line] = []
    used = 0
    for number, (nbytes, kind, weights) in enumerate(parts):
        end = round(width * (sum(part[0] for part in parts[: number + 1])) / total)
        sign, colour = _FILLS[number % len(_FILLS)]
        bar.append((sign * (end - used), colour))
        legend.append([(f"{sign} ", colour), (f"{clean(kind)} {8 * nbytes / weights:.1f}  ", "muted")])
        used = end
    return [bar, *flow(legend, width)[:most]]


def curve_lines(
    curve: Sequence[Fit], mixes: Sequence[Mixed], trials: Sequence[Trial], fit: Fit, width: int, height: int, most: int
) -> list[Line]:
    """Predicted divergence over size: the line of fits, the mixes predicted, trials as they were measured.

    Below its `height` lines at most `most` name the mixes.
    """
    points = [Point(one.resolution.total_bytes, one.predicted.kld, "·", front=True) for one in curve]
    points = [point for point in points if point.y > 0]
    names: list[Line] = []
    for letter, mix in zip(LETTERS, mixes, strict=False):
        points.append(Point(mix.nbytes, mix.predicted.kld, letter))
        names.append([(f"{letter} {mix.name}  ", "faint")])
    measured = [Point(trial.size, kld, "×") for trial in trials if (kld := trial.figure("mean_kld"))]
    points += measured
    title = "predicted KLD; × trials as measured" if measured else "predicted KLD"
    points.append(Point(fit.resolution.total_bytes, fit.predicted.kld, "◆", best=True))
    lines = scatter([point for point in points if point.y > 0], width, height, title)
    nearest = min(range(len(names)), key=lambda at: abs(mixes[at].nbytes - fit.resolution.total_bytes), default=0)
    return [*lines, *_names_near(names, nearest, width, most)]


def _names_near(names: Sequence[Line], nearest: int, width: int, most: int) -> list[Line]:
    """All names where they fit into `most` lines, else those about the nearest, from which some others are left out."""
    if len(lines := flow(names, width)) <= most:
        return lines
    start = max(0, nearest - 3 * most)
    while start and len(flow([_CUT, *names[start - 1 :]], width)) <= most:
        start -= 1
    return flow([_CUT, *names[start:]] if start else names, width)[:most]


def improvement_lines(fit: Fit, count: int) -> list[Line]:
    """Where the next bytes would do most."""
    lines: list[Line] = [[("next best bytes", "head")]]
    for one in improvements(fit, count):
        name = clean(one.unit.members[0].name.removesuffix(".weight"))
        lines.append(
            [
                (fitted(name, 24), "text"),
                (f"{one.before} → {one.after}".ljust(18), "changed"),
                (f"+{figures.size(one.more)}".rjust(10), "muted"),
                (f"  saves {figures.divergence(one.saved)}", "text"),
            ]
        )
    return lines


def fragile_lines(parts: Sequence[Part], width: int, height: int) -> list[Line]:
    """Kind by depth: what each part lost for every million of its weights when it alone was probed at a low type."""
    kinds = by_kind(list(parts))
    stretches = list(dict.fromkeys(part.layers for part in parts if part.layers)) or [""]
    cell = max(8, min(14, (width - _KIND - 8) // len(stretches)))
    logs = [math.log10(part.fragility) for part in parts if part.fragility > 0] or [0.0]
    low, high = min(logs), max(logs)
    weights, unit = weights_unit(parts)
    head: Line = [(fitted("fragile parts", _KIND), "head")]
    head += [(fitted(layers, cell), "muted") for layers in stretches]
    lines: list[Line] = [[*head, ("at", "muted")]]
    for kind, own in list(kinds.items())[: height - 2]:
        by_stretch = {part.layers: part for part in own}
        line: Line = [(fitted(clean(kind), _KIND), "text")]
        for layers in stretches:
            part = by_stretch.get(layers, by_stretch.get("") if layers == stretches[0] else None)
            line += _fragile_cell(part, (low, high), cell, unit)
        lines.append([*line, (types_of(own[0].low), "faint")])
    note = f"measured KLD per {weights} weights with that part alone at the low type"
    return [*lines, cut([(note, "faint")], width)]


def _fragile_cell(part: Part | None, scale: tuple[float, float], cell: int, unit: float) -> Line:
    if part is None:
        return [(" " * cell, "")]
    if not part.fragility > 0:
        return [(fitted("0", cell), "faint")]
    low, high = scale
    share = (math.log10(part.fragility) - low) / (high - low) if high > low else 0.5
    said = figures.divergence(unit * part.fragility)
    return [("██ ", figures.ramp(share)), (fitted(said, cell - 3), "text")]
