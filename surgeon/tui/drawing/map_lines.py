"""The map of the model as lines: one cell a tensor, layers across. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon import figures
from surgeon.model.model import Tensor
from surgeon.resolve.tensor_op import TensorOp
from surgeon.session.metrics import METRICS, Metric, curve_fractions
from surgeon.session.model_map import Grid, step
from surgeon.session.session import Session
from surgeon.tui.drawing.spans import Line, Span, clean, cut, fit, spread, width_of
from surgeon_kernels.formats import FORMATS

LABEL = 15  # cells of the kinds at the left
_WIDEST = 3  # cells of a layer where there are few
_UNKNOWN: Span = ("·", "faint")
_NO_BITS = {"F32": "F", "F16": "H", "BF16": "B"}


@dataclass(frozen=True)
class MapView:
    """What the cells show."""

    key: str
    title: str
    help: str


PLAN_VIEWS = (
    MapView("type", "type", "whole bits per weight in the output; F H B: F32, F16, BF16"),
    MapView("err", "err", "relative error of the type there, by order of magnitude"),
    MapView("size", "size", "bytes in the output"),
    MapView("change", "change", "bits against what is compared with"),
)


def views(session: Session) -> tuple[MapView, ...]:
    """What can be shown: of the plan, and every figure that tensors have."""
    known = session.measurements.known
    wanted = (metric for metric in METRICS.values() if metric.of != "layers" and metric.key not in ("n", "err"))
    metrics = (metric for metric in wanted if known(metric))
    first, *rest = PLAN_VIEWS
    return (first, rest[0], *(MapView(metric.key, metric.title, metric.help) for metric in metrics), *rest[1:])


@dataclass(frozen=True)
class MapState:
    """cursor, corner: (row, column), corner the other end of a rectangle; errors: tensor name -> type -> relative
    error; base: what `change` compares with, tensor name -> type; base_name: its name."""

    session: Session
    grid: Grid
    view: MapView
    cursor: tuple[int, int] = (0, 0)
    corner: tuple[int, int] | None = None
    errors: Mapping[str, Mapping[str, float]] | None = None
    base: Mapping[str, str] | None = None
    base_name: str = ""

    @property
    def selected(self) -> tuple[Tensor, ...]:
        return self.grid.inside(self.corner or self.cursor, self.cursor)

    def is_selected(self, row: int, column: int) -> bool:
        if self.corner is None:
            return False
        rows, columns = zip(self.corner, self.cursor, strict=True)
        return min(rows) <= row <= max(rows) and min(columns) <= column <= max(columns)


@dataclass(frozen=True)
class Shape:
    """each: layers in a cell; wide: cells a column of the map takes; rows: kinds that fit."""

    each: int
    wide: int
    rows: int

    @classmethod
    def of(cls, layers: int, width: int, height: int, above: int) -> Shape:
        room = max(1, width - LABEL - 1)
        each = max(1, -(-layers // room))
        return cls(each, max(1, min(_WIDEST, room // layers)) if each == 1 else 1, max(1, height - above))


def map_lines(state: MapState, width: int, height: int) -> list[Line]:
    """Ruler, damage, roles, and as many kinds around the cursor as fit into `height` lines."""
    session, layers = state.session, state.grid.layers
    above = 3 if session.roles else 2
    shape = Shape.of(len(layers), width, height, above)
    lines = [_ruler(layers, shape, width), _damage(state, shape)]
    if session.roles:
        letters = [(session.roles.get(layer, " ")[:1], "muted") for layer in layers]
        lines.append([(fit(" role", LABEL), "head"), *_spread(letters, shape)])
    first = max(0, min(state.cursor[0] - shape.rows + 1, len(state.grid.kinds) - shape.rows))
    if state.cursor[0] < first:
        first = state.cursor[0]
    errors = _ErrorScale.of(state)
    for row in range(first, min(len(state.grid.kinds), first + shape.rows)):
        here = row == state.cursor[0]
        name = fit(("▸" if here else " ") + clean(state.grid.kinds[row]), LABEL - 1) + " "
        cells = [_cell(state, errors, row, column) for column in range(len(layers))]
        lines.append([(name, "strong" if here else "text"), *_marked(state, row, cells, shape)])
    return [cut(line, width) for line in lines]


def place_at(state: MapState, x: int, y: int, width: int, height: int) -> tuple[int, int] | None:
    """The (row, column) of the map that a click at cell `x` of line `y` means."""
    above = 3 if state.session.roles else 2
    shape = Shape.of(len(state.grid.layers), width, height, above)
    first = max(0, min(state.cursor[0] - shape.rows + 1, len(state.grid.kinds) - shape.rows))
    row, column = y - above + first, (x - LABEL) // shape.wide * shape.each
    inside = 0 <= row < len(state.grid.kinds) and x >= LABEL and column < len(state.grid.layers)
    return (row, column) if inside and y >= above else None


# --- the lines above


def _ruler(layers: Sequence[int], shape: Shape, width: int) -> Line:
    text = [" "] * (width - LABEL)
    every = 5 if shape.wide > 1 else 10
    for place, layer in enumerate(layers):
        if layer % every == 0:
            at = place // shape.each * shape.wide
            for offset, letter in enumerate(str(layer)):
                if at + offset < len(text):
                    text[at + offset] = letter
    return [(" " * LABEL, ""), ("".join(text).rstrip(), "muted")]


def _damage(state: MapState, shape: Shape) -> Line:
    """What removing each layer costs where that was measured, else Σ(Bias)."""
    session, layers = state.session, state.grid.layers
    metric: Metric = METRICS["kld" if session.damages else "sum"]
    values = session.measurements.curve(metric, None, layers)
    parts = curve_fractions(metric, values)
    cells: list[Span] = []
    for layer, part in zip(layers, parts, strict=True):
        if layer in session.plan.pruned:
            cells.append(("✗", "pruned"))
        else:
            cells.append(_UNKNOWN if part is None else (figures.level(part), figures.ramp(part)))
    return [(fit(f" {metric.title}", LABEL), "head"), *_spread(cells, shape)]


def _spread(cells: Sequence[Span], shape: Shape) -> Line:
    """One sign a column; of several layers in a column the one with the most to say."""
    line: Line = []
    for start in range(0, len(cells), shape.each):
        sign, role = max(cells[start : start + shape.each], key=_weight)
        line.append((sign.ljust(shape.wide), role))
    return line


def _weight(cell: Span) -> tuple[int, str]:
    """What wins where two layers share a cell: a figure over none, the higher over the lower, ✗ over nothing."""
    sign = cell[0]
    return (0 if sign in " ✗" else 1 if sign == "·" else 2, sign)


# --- the cells


@dataclass(frozen=True)
class _ErrorScale:
    low: float
    high: float

    @classmethod
    def of(cls, state: MapState) -> _ErrorScale:
        found = [value for tensor in state.grid.tensors.values() if (value := error_of(state, tensor))]
        logs = [math.log10(value) for value in found] or [0.0]
        return cls(min(logs), max(logs))

    def part(self, error: float) -> float:
        return (math.log10(error) - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def error_of(state: MapState, tensor: Tensor, type_name: str | None = None) -> float | None:
    """The measured error of `type_name`, or of the tensor's type in the plan; None where it was not measured."""
    here = state.session.ops[tensor.name].to_type
    name = type_name or here
    error = (state.errors or {}).get(tensor.name, {}).get(name)
    if error is None and name == here:
        return state.session.measurements.of_tensor(METRICS["err"], tensor.name)
    return error


def _cell(state: MapState, errors: _ErrorScale, row: int, column: int) -> Span:
    tensor = state.grid.at(row, column)
    if tensor is None:
        return (" ", "")
    op = state.session.ops[tensor.name]
    if op.action == "drop":
        return ("✗", "pruned")
    key = state.view.key
    if key == "type":
        by_hand = op.reason.startswith(("set by hand", "rule "))
        return (bits_sign(op.to_type), "marked" if by_hand else _bits_role(op.to_type))  # bold: seen without colours
    if key == "size":
        part = op.nbytes / (2 * state.grid.largest)
        return (figures.level(part), figures.ramp(part))
    if key == "change":
        return _change(state, op)
    if key == "err":
        error = error_of(state, tensor)
        if error is None:
            return _UNKNOWN
        return ("0", "faint") if not error else _level(errors.part(error))
    measurements = state.session.measurements
    value = measurements.of_tensor(METRICS[key], tensor.name)
    part_ = measurements.fraction(METRICS[key], tensor.short, value)
    return _UNKNOWN if part_ is None else _level(part_)


def _level(part: float) -> Span:
    return (figures.level(part), figures.ramp(part))


def _change(state: MapState, op: TensorOp) -> Span:
    was = (state.base or {}).get(op.source)
    if was is None:
        return _UNKNOWN
    if was == op.to_type:
        return ("=", "faint")
    more = _bits(op.to_type) - _bits(was)
    return ("▲", "accent") if more > 0 else ("▼", "warning") if more < 0 else ("≠", "changed")


def _bits(name: str) -> float:
    return FORMATS[name].bpw if name in FORMATS else 0.0


def bits_sign(name: str) -> str:
    """Whole bits per weight in one letter; F, H, B for F32, F16 and BF16, ? for what is unknown."""
    if name in _NO_BITS:
        return _NO_BITS[name]
    return str(int(FORMATS[name].bpw))[:1] if name in FORMATS else "?"


def _bits_role(name: str) -> str:
    return f"ramp{min(4, max(0, int(_bits(name)) - 2))}"


def _marked(state: MapState, row: int, cells: list[Span], shape: Shape) -> Line:
    """The cells of a row with cursor and rectangle."""
    line: Line = []
    for start in range(0, len(cells), shape.each):
        group = range(start, min(start + shape.each, len(cells)))
        sign, role = max((cells[column] for column in group), key=_weight)
        if row == state.cursor[0] and state.cursor[1] in group:
            line += [(sign, "map-here"), (" " * (shape.wide - 1), "")]
        elif any(state.is_selected(row, column) for column in group):
            line.append((sign.ljust(shape.wide), "map-range"))
        else:
            line.append((sign.ljust(shape.wide), role))
    return line


# --- the lines around


def head_line(state: MapState, width: int) -> Line:
    """What the cells show, and what the plan comes to."""
    resolution = state.session.resolution
    right: Line = [(f" {figures.size(resolution.total_bytes)}", "strong"), (f"  {resolution.bpw:.2f} bpw ", "text")]
    known = views(state.session)
    at = next((place for place, view in enumerate(known) if view.key == state.view.key), 0)
    left: Line = [(" MAP ", "accent")]
    for view in known[max(0, at - 2) :]:
        item: Line = [(f" {view.title} ", "strip-scope" if view.key == state.view.key else "muted")]
        if width_of(left) + width_of(item) + width_of(right) >= width:  # a blank before the right end
            break
        left += item
    return spread(left, right, width)


def about_lines(state: MapState, width: int) -> list[Line]:
    """Two lines on what is under the cursor or in the rectangle, and what one step up or down would do."""
    if state.corner is not None:
        return _about_range(state, width)
    row, column = state.cursor
    tensor, kind = state.grid.at(row, column), clean(state.grid.kinds[row])
    if tensor is None:
        return [[(f" {kind}: layer {state.grid.layers[column]} has none", "muted")], []]
    op = state.session.ops[tensor.name]
    place = f"{kind}.{tensor.layer}" if tensor.layer is not None else kind
    line: Line = [(f" ▸{place} ", "strong")]
    if op.action == "drop":
        return [[*line, (f"pruned, {figures.size(tensor.nbytes)} less", "pruned")], []]
    line += [(op.to_type, "changed"), (f" {figures.size(op.nbytes)}", "text"), *_error(state, tensor, op.to_type)]
    steps: Line = []
    for by, sign in ((1, "+"), (-1, "-")):
        found = step(state.session, tensor, by)
        if found is not None:
            more = f"{'+' if found.more >= 0 else '−'}{figures.size(abs(found.more))}"
            steps += [("   ", ""), (sign, "key"), (f" {found.type}", "text"), *_error(state, tensor, found.type, "")]
            steps += [(f" {more}", "muted")]
    lines = [[*line, *steps], [(" " + _value(state, tensor, op), "muted")]]
    return [cut(entry, width) for entry in lines]


def _error(state: MapState, tensor: Tensor, type_name: str, word: str = " err") -> Line:
    error = error_of(state, tensor, type_name)
    return [] if error is None else [(f"{word} {f'{error:.4f}'.removeprefix('0')}", "text")]


def _value(state: MapState, tensor: Tensor, op: TensorOp) -> str:
    """The figure that the view shows, and why the type."""
    key, why = state.view.key, clean(op.reason)
    if key == "change":
        was = (state.base or {}).get(op.source)
        return f"{state.base_name}: {was or 'does not have it'} · {why}"
    if key in METRICS:
        metric = METRICS[key]
        return f"{metric.title} {metric.text(state.session.measurements.of_tensor(metric, tensor.name))} · {why}"
    return why


def _about_range(state: MapState, width: int) -> list[Line]:
    selected = state.selected
    ops = [state.session.ops[tensor.name] for tensor in selected]
    kept = [op for op in ops if op.action != "drop"]
    types: dict[str, int] = {}
    for op in kept:
        types[op.to_type] = types.get(op.to_type, 0) + 1
    words = ", ".join(f"{count} {name}" for name, count in sorted(types.items(), key=lambda item: -item[1]))
    tensors = figures.counted(len(selected), "tensor")
    line: Line = [(f" {tensors} ", "strong"), (figures.size(sum(op.nbytes for op in kept)), "text")]
    columns = sorted({tensor.layer for tensor in selected if tensor.layer is not None})
    where = f"layers {columns[0]}-{columns[-1]}" if len(columns) > 1 else f"layer {columns[0]}" if columns else ""
    return [cut([*line, (f"  {words}", "muted")], width), cut([(f" {where}", "muted")], width)]


# What must be seen at 80 columns comes first.
_KEYS = [("Tab", "view"), ("v", "range"), ("t", "type"), ("+ -", "step"), ("p", "prune"), ("b", "compare"),
         ("Enter", "tree"), ("Esc", "close"), ("u", "undo"), ("T", "auto type"), ("V", "views")]  # fmt: skip
_RANGE_KEYS = [("↑↓←→", "extend"), ("t", "type"), ("+ -", "step"), ("p", "prune layers"), ("Esc", "drop")]


def key_line(state: MapState, width: int) -> Line:
    keys = _RANGE_KEYS if state.corner is not None else _KEYS
    line: Line = [(" ", "")]
    for key, word in keys:
        item: Line = [(key, "key"), (f" {word}  ", "muted")]
        if width_of(line) + width_of(item) > width + 2:  # the two blanks behind the last need no room
            break
        line += item
    return line
