"""The lines around the tree: header, the strip over the whole model, the bar of keys. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon import figures
from surgeon.plan.plan import Plan
from surgeon.session.metrics import Metric, curve_fractions
from surgeon.session.session import Session
from surgeon.tui.drawing.describe import column_width
from surgeon.tui.drawing.spans import Line, clean, elide_start, spread, width_of

SEPARATOR = ("  ", "")


def header(session: Session, status: str, width: int) -> list[Line]:
    """Two lines: what is on the table, and what the plan makes of it; `status` is what runs in the background."""
    return [_model_line(session, width), _plan_line(session, status, width)]


def _model_line(session: Session, width: int) -> Line:
    model = session.model
    layers = f"{figures.counted(len(model.layers), 'layer')} · {figures.count(model.n_parameters)}"
    facts = f"{clean(model.architecture) or 'no architecture'} · {layers}"
    right: Line = _imatrix_note(session, wide=width >= 110)
    room = width - width_of(right) - len(facts) - 14
    name = elide_start(clean(model.file.path.name), max(12, room))
    left: Line = [(" surgeon ", "accent"), (name, "strong"), SEPARATOR, (facts, "muted")]
    return spread(left, [*right, (" ", "")], width)


def _imatrix_note(session: Session, wide: bool) -> Line:
    imatrix, coverage = session.imatrix, session.coverage
    if imatrix is None or coverage is None:
        return [("no imatrix", "faint")]
    have = len(coverage.covered)
    wanted = have + len(coverage.missing) + len(coverage.misfits)
    chunks = figures.counted(imatrix.chunk_count, "chunk")
    name = f"{elide_start(clean(imatrix.path.name), 28)} · {chunks}" if wide else ""
    return [
        ("imatrix ", "muted"),
        (name + " " if wide else "", "text"),
        (f"{have}/{wanted}", "text" if have == wanted else "warning"),
        (" + moments" if session.moments is not None else "", "accent"),
    ]


def _plan_line(session: Session, status: str, width: int) -> Line:
    """The most important first; what does not fit is left out whole."""
    right: Line = [(status, "accent"), (" ", "")] if status else []
    room = width - 1 - width_of(right)
    line: Line = [(" ", "")]
    for item in _plan_items(session):
        need = width_of(item) + len(SEPARATOR[0])
        if need <= room:
            line += [*item, SEPARATOR]
            room -= need
    return spread(line, right, width)


def _plan_items(session: Session) -> list[Line]:
    plan, resolution = session.plan, session.resolution
    before, after = session.model.file.nbytes, resolution.total_bytes
    shrunk = 100 * (1 - after / before) if before else 0.0
    items: list[Line] = [
        [(plan.file_type, "changed" if plan.file_type != "COPY" else "muted")],
        [
            (f"{figures.size(before)} → ", "muted"),
            (figures.size(after), "strong"),
            (f" {'▼' if shrunk > -0.5 else '▲'}{abs(shrunk):.0f}%", "changed" if plan != Plan() else "faint"),
        ],
        [(f"{resolution.bpw:.2f}", "strong"), (" bpw", "muted")],
    ]
    predicted = session.predicted
    if predicted is not None and predicted.kld > 0:
        error = f" ±{figures.divergence(predicted.error)}"
        items.append([("KLD ", "muted"), (figures.divergence(predicted.kld), "strong"), (error, "muted")])
    if plan.pruned:
        items.append([(f"✗ {len(plan.pruned)} pruned", "pruned")])
    items.append(problem_note(session))
    if session.marks:
        items.append([(f"● {len(session.marks)} marked", "marked")])
    if plan.rules:
        items.append([(f"{len(plan.rules)} rule{'s' * (len(plan.rules) > 1)}", "text")])
    by_hand = len(plan.types) - len(plan.reasons)
    if by_hand > 0:
        items.append([(f"{by_hand} by hand", "text")])
    return items


def problem_note(session: Session) -> Line:
    """`1 error 2 notes` of the pre-flight list."""
    problems = session.resolution.problems
    roles = {"error": "pruned", "warning": "warning", "note": "muted"}
    line: Line = []
    for severity, role in roles.items():
        number = sum(problem.severity == severity for problem in problems)
        if number:
            line.append((f"{' ' if line else ''}{number} {severity}{'s' * (number > 1)}", role))
    return line or [("checks OK", "faint")]


def strip(session: Session, metric: Metric, layer: int | None, width: int) -> Line:
    """One cell per layer (more when they are few, one for several when they are many): metric, prune marks, cursor."""
    layers = [entry.index for entry in session.model.layers]
    label = f" {metric.title:<8}"
    if not layers:
        return [(label, "head"), ("no layers", "faint")]
    values = session.measurements.curve(metric, None, layers)
    if all(value is None for value in values):
        values = [float(session.layers[number].nbytes) for number in layers]
        label = f" {'size':<8}"
    _, each, wide, gap = _strip_shape(len(layers), width)
    line: Line = [(label, "head")]
    parts = curve_fractions(metric, values)
    for start in range(0, len(layers), each):
        line.append(_strip_cell(session, layers[start : start + each], parts[start : start + each], layer, wide))
        line.append((gap, "faint"))
    where = f" layer {layer}" if layer is not None else ""
    return [*line, (where, "muted")]


_STRIP_LABEL, _STRIP_END = 9, 12  # cells before and after the layers


def _strip_shape(count: int, width: int) -> tuple[int, int, int, str]:
    """Cells for the layers, layers a cell, cells a layer, the gap after each."""
    room = max(1, width - _STRIP_LABEL - _STRIP_END)
    return room, -(-count // room), *column_width(room, count)


def strip_layer_at(session: Session, x: int, width: int) -> int | None:
    """The layer that a click on the strip at cell `x` means."""
    layers = [entry.index for entry in session.model.layers]
    _, each, wide, gap = _strip_shape(len(layers), width)
    place = (x - _STRIP_LABEL) // (wide + len(gap)) * each
    return layers[place] if x >= _STRIP_LABEL and place < len(layers) else None


def _strip_cell(
    session: Session, layers: Sequence[int], parts: Sequence[float | None], layer: int | None, wide: int
) -> tuple[str, str]:
    here = layer is not None and layer in layers
    if all(number in session.plan.pruned for number in layers):
        return "✗" * wide, "strip-pruned-here" if here else "pruned"
    known = [part for part in parts if part is not None]
    part = max(known) if known else None
    drawn = "·" if part is None else figures.level(part)
    role = "strip-here" if here else "faint" if part is None else figures.ramp(part)
    return drawn * wide, role


@dataclass(frozen=True)
class Hint:
    """A key and a word in the bar below."""

    key: str
    word: str
    action: str


def key_bar(hints: Sequence[Hint], width: int) -> Line:
    """As many hints, in order, as fit whole; the help lists the others."""
    line: Line = [(" ", "")]
    used = 1
    for hint in hints:
        need = len(hint.key) + 1 + len(hint.word) + 2
        if used + need > width:
            break
        line += [(hint.key, "key"), (f" {hint.word}  ", "muted")]
        used += need
    return line


def hint_at(hints: Sequence[Hint], x: int) -> Hint | None:
    """The hint that a click at cell `x` means."""
    at = 1
    for hint in hints:
        end = at + len(hint.key) + 1 + len(hint.word)
        if at <= x < end:
            return hint
        at = end + 2
    return None
