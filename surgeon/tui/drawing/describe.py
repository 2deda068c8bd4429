"""What the detail pane says of a row: type, reason, statistics, shared input and the curve over the layers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgeon import figures
from surgeon.session.metrics import METRICS, Metric, curve_fractions
from surgeon.session.rows import LayerRow, Row, TensorRow
from surgeon.session.session import Session
from surgeon.tui.drawing.cells import shape_text
from surgeon.tui.drawing.spans import Line, clean, cut, wrap

# type name -> relative root mean square error of the row under the cursor, as measured so far
Errors = Mapping[str, float]


def describe(row: Row, metric: Metric, width: int, height: int, errors: Errors | None = None) -> list[Line]:
    """At most `height` lines of at most `width` cells; wide and low, or narrow and tall."""
    compose = _low if height <= 8 else _tall
    return [cut(line, width) for line in compose(row, metric, width, height, errors or {})][:height]


def _low(row: Row, metric: Metric, width: int, height: int, errors: Errors) -> list[Line]:
    title = title_line(row)
    figures_ = _statistics_run(row)
    lines = [title, *_why_lines(row, width)[:1]]
    lines.extend(_flow(figures_, width)[:2])
    shared = _shared_line(row)
    if shared:
        lines[1] = [*lines[1], ("   ", ""), *shared]
    return [*lines, *curve_lines(row, metric, width, 1)]


def _tall(row: Row, metric: Metric, width: int, height: int, errors: Errors) -> list[Line]:
    lines = [[(clean(_title(row)), "title")], *_facts(row), []]
    lines += _why_lines(row, width)
    shared = _shared_line(row)
    lines += [shared] if shared else []
    lines += [[], *_statistics_table(row, width)]
    if errors:
        lines += [[], *_error_lines(errors, width)]
    room = height - len(lines) - 3
    if room < 2:
        return [*lines, *curve_lines(row, metric, width, 1)]
    return [*lines, [], *curve_lines(row, metric, width, min(6, room))]


def _title(row: Row) -> str:
    return f"blk.{row.layer}" if isinstance(row, LayerRow) else row.name


def title_line(row: Row) -> Line:
    """Name, shape, types and sizes in one line."""
    line: Line = [(clean(_title(row)), "title")]
    for fact in _facts(row):
        line += [("  ", ""), *fact]
    return line


def _facts(row: Row) -> list[Line]:
    if isinstance(row, LayerRow):
        return _layer_facts(row)
    op = row.op
    head: Line = [(shape_text(row.tensor), "text"), (f" · {figures.count(row.tensor.n_elements)} weights", "muted")]
    if row.pruned:
        return [head, [(f"pruned, {figures.size(row.tensor.nbytes)} less", "pruned")]]
    if op.to_type == op.from_type:
        return [head, [(f"{op.from_type} · {figures.size(op.nbytes)}", "text"), (" unchanged", "muted")]]
    sizes = f" · {figures.size(row.tensor.nbytes)} → {figures.size(op.nbytes)}"
    return [head, [(f"{op.from_type} → ", "text"), (op.to_type, "changed"), (sizes, "muted")]]


def _layer_facts(row: LayerRow) -> list[Line]:
    summary = row.summary
    tensors = f"{figures.counted(len(row.layer_.tensors), 'tensor')} · {figures.count(row.layer_.n_elements)} weights"
    if row.pruned:
        return [[(tensors, "text")], [(f"pruned, {figures.size(summary.before)} less", "pruned")]]
    lines: list[Line] = [
        [(tensors, "text")],
        [(f"{_sizes(summary.before, summary.nbytes)} · {summary.bpw:.2f} bpw", "text")],
    ]
    if summary.number != row.layer:
        lines.append([(f"→ blk.{summary.number} in the output", "changed")])
    return lines


def _sizes(before: int, after: int) -> str:
    return figures.size(after) if before == after else f"{figures.size(before)} → {figures.size(after)}"


def _why_lines(row: Row, width: int) -> list[Line]:
    if isinstance(row, TensorRow):
        return wrap(f"why: {clean(row.op.reason)}", width, "accent", "  ")
    if row.pruned:
        return [[("why: pruned by you (p restores it)", "pruned")]]
    return [[("types: ", "muted"), (" ".join(row.summary.types) or "none", "text")]]


def _shared_line(row: Row) -> Line:
    if isinstance(row, LayerRow):
        return []
    others = row.session.shares_input(row.name)
    return [("≡ same input as ", "muted"), (", ".join(others), "text")] if others else []


def _values(row: Row) -> list[tuple[Metric, float]]:
    pairs = ((metric, row.metric(key)) for key, metric in METRICS.items())
    return [(metric, value) for metric, value in pairs if value is not None]


def missing(row: Row, session: Session) -> str:
    """Why there are no statistics."""
    if session.imatrix is None:
        return "no statistics: i loads an imatrix, I collects"
    if isinstance(row, TensorRow) and row.name in session.uncovered:
        return "the imatrix does not cover this tensor"
    return "not covered by the imatrix (not a matmul weight)"


def _statistics_run(row: Row) -> list[Line]:
    values = _values(row)
    if not values:
        return [[(missing(row, row.session), "faint")]]
    return [[(f"{metric.title} ", "muted"), (metric.text(value), "text")] for metric, value in values]


def _flow(items: list[Line], width: int) -> list[Line]:
    """Items set one after the other into lines of at most `width` cells."""
    lines: list[Line] = [[]]
    used = 0
    for item in items:
        length = sum(len(text) for text, _ in item)
        if used and used + 2 + length > width:
            lines.append([])
            used = 0
        if used:
            lines[-1].append(("  ", ""))
            used += 2
        lines[-1].extend(item)
        used += length
    return lines


def _statistics_table(row: Row, width: int) -> list[Line]:
    values = _values(row)
    if not values:
        return wrap(missing(row, row.session), width, "faint")
    short = None if isinstance(row, LayerRow) else row.tensor.short
    room = max(0, min(16, width - 21))
    lines: list[Line] = []
    for metric, value in values:
        part = row.session.measurements.fraction(metric, short, value)
        bar = figures.bar(part, room) if part is not None and room and metric.key != "n" else ""
        role = figures.ramp(part) if part is not None else ""
        lines.append([(f"{metric.title:<9}", "muted"), (f"{metric.text(value):>9}", "text"), (f"  {bar}", role)])
    return lines


def _error_lines(errors: Errors, width: int) -> list[Line]:
    items: list[Line] = [[(f"{name} ", "muted"), (f"{value:.4f}", "text")] for name, value in errors.items()]
    return [[("relative error by type", "head")], *_flow(items, width)]


def curve_lines(row: Row, metric: Metric, width: int, height: int) -> list[Line]:
    """The metric over the layers, as columns of `height` cells, with the row's layer pointed out."""
    session = row.session
    layers = [layer.index for layer in session.model.layers]
    short = None if isinstance(row, LayerRow) else row.tensor.short
    if (short is not None and row.layer is None) or not layers:
        return []
    if short is None and not metric.on_layers:
        metric = METRICS["sum"]
    if metric.layers_only:
        short = None
    values = session.measurements.curve(metric, short, layers)
    if all(value is None for value in values):
        return []
    whose = f"{metric.title} of {short}" if short else metric.title
    label = f"{whose} over layers {layers[0]}-{layers[-1]}"
    at = layers.index(row.layer) if row.layer in layers else None
    if height == 1:
        room = max(8, width - len(label) - 2)
        return [[(f"{label}  ", "head"), *_curve_row(curve_fractions(metric, values), at, room, 0, 1)]]
    fractions = curve_fractions(metric, values)
    plot = [_curve_row(fractions, at, width, level, height) for level in range(height - 1, -1, -1)]
    return [[(label, "head")], *plot, _pointer(at, len(layers), width)]


def _curve_row(fractions: Sequence[float | None], at: int | None, width: int, level: int, height: int) -> Line:
    """One row of the plot; `level` 0 is the lowest. Columns are as wide as fit, or several layers share one."""
    wide, gap = column_width(width, len(fractions))
    line: Line = []
    for start, group in _groups(fractions, width):
        known = [part for part in group if part is not None]
        part = max(known) if known else None
        here = at is not None and start <= at < start + len(group)
        role = "changed" if here else figures.ramp(part or 0)
        line.append((_fill(part, level, height) * wide + gap, role))
    return _merged(line)


def column_width(width: int, count: int) -> tuple[int, str]:
    """Cells of each of `count` columns in `width` cells, and the gap after it: none where it is tight."""
    wide = max(1, min(4, width // max(1, count)))
    return (wide - 1, " ") if wide > 1 else (1, "")


def _groups(values: Sequence[float | None], width: int) -> list[tuple[int, Sequence[float | None]]]:
    each = -(-len(values) // max(1, width))
    return [(start, values[start : start + each]) for start in range(0, len(values), each)]


def _fill(part: float | None, level: int, height: int) -> str:
    if part is None:
        return "·" if level == 0 else " "
    filled = max(1, round(part * height * 8)) - level * 8
    return " " if filled <= 0 else figures.LEVELS[min(filled, 8) - 1]


def _pointer(at: int | None, count: int, width: int) -> Line:
    if at is None:
        return []
    wide, gap = column_width(width, count)
    each = -(-count // max(1, width))
    return [(" " * (at // each * (wide + len(gap))), ""), ("▲", "changed"), (f" {at}", "muted")]


def _merged(line: Line) -> Line:
    """Neighbours of one role drawn together: fewer escape sequences on the wire."""
    out: Line = []
    for text, role in line:
        if out and out[-1][1] == role:
            out[-1] = (out[-1][0] + text, role)
        else:
            out.append((text, role))
    return out
