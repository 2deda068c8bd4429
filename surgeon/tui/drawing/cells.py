"""The columns of the tree: which of them fit, and what a row shows in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from surgeon import figures
from surgeon.model.model import Tensor
from surgeon.session.metrics import METRICS, Metric
from surgeon.session.rows import LayerRow, Row, TensorRow
from surgeon.tui.drawing.spans import Line, clean, fit

NAME_LEAST, NAME_MOST = 17, 40
GAP = "  "


@dataclass(frozen=True)
class Column:
    """key: in filters, the config file and the chooser; rank: the lower, the longer it stays when space gets scarce;
    bar: cells of the bar beside the number (0: none); grows: takes what is left over."""

    key: str
    title: str
    width: int
    rank: int
    help: str = ""
    right: bool = False
    bar: int = 0
    grows: bool = False

    @property
    def total(self) -> int:
        return self.width + (self.bar + 1 if self.bar else 0)


def _metric_column(metric: Metric) -> Column:
    place = metric.place
    return Column(metric.key, metric.title, place.width, place.rank, metric.help, right=True, bar=place.bar)


COLUMNS: dict[str, Column] = {
    column.key: column
    for column in (
        Column("shape", "shape", 13, 6, "row length × rows; parameters of a layer"),
        Column("type", "type → new", 13, 0, "type here and in the output; of a layer, bits per weight"),
        Column("before", "before", 8, 20, "size in the input", right=True),
        Column("size", "size", 8, 1, "size in the output", right=True),
        *map(_metric_column, METRICS.values()),
        Column("why", "why", 18, 8, "why the tensor gets its type", grows=True),
    )
}
# Metrics that are measured take no place until they are.
DEFAULT_COLUMNS = ("shape", "type", "size", *(key for key, metric in METRICS.items() if metric.place.shown), "why")


@dataclass(frozen=True)
class Layout:
    """name: width of the name column; columns: those that fit, in the order shown."""

    width: int
    name: int
    columns: tuple[Column, ...]


def layout(
    width: int, chosen: Iterable[str] = DEFAULT_COLUMNS, *, sort: str | None = None, least: int = NAME_LEAST
) -> Layout:
    """The columns that fit into `width` cells: by rank, then shown in the order chosen; the rest goes to the names.

    sort: the column that orders the rows, shown in any case; least: cells that the names need.
    """
    keys = list(chosen)
    keys += [sort] if sort in COLUMNS and sort not in keys else []
    wanted = [COLUMNS[key] for key in keys]
    room = width - 4 - least
    kept: set[str] = set()
    for column in sorted(wanted, key=lambda column: -1 if column.key == sort else column.rank):
        need = column.total + len(GAP)
        if need > room:
            break
        kept.add(column.key)
        room -= need
    columns = [column for column in wanted if column.key in kept]
    if room and columns and columns[-1].bar:
        room -= 1  # a bar that touches the scroll bar looks like a part of it
    name = min(NAME_MOST if not any(c.grows for c in columns) else 24, least + room)
    room -= name - least
    return Layout(width, name, tuple(_grown(columns, room)))


def _grown(columns: list[Column], room: int) -> list[Column]:
    """What is left over goes to the CosSim bar first, then to the column that grows."""
    grown = []
    for column in columns:
        if column.key == "cos" and room > 0:
            more = min(4, room)
            room -= more
            column = replace(column, bar=column.bar + more)
        grown.append(column)
    return [replace(c, width=c.width + room) if c.grows else c for c in grown]


def heads(shape: Layout, sort: str | None, descending: bool) -> Line:
    """The line of titles; the column that sorts carries an arrow."""
    line: Line = [(fit("    name", shape.name + 4), "head")]
    for column in shape.columns:
        arrow = ("▼" if descending else "▲") if column.key == sort else ""
        room = column.total if column.bar else column.width
        title = fit(column.title, column.width, "right") if column.right else column.title
        if column.right and not column.bar and arrow:
            title = title[1:] if title.startswith(" ") else title
        line.append((GAP + fit(title + arrow, room), "accent" if arrow else "head"))
    return line


def column_at(shape: Layout, x: int) -> str:
    """The key of the column whose heading is at cell `x`; "name" at the left."""
    end = shape.name + 4
    for column in shape.columns:
        if x < end + len(GAP):
            break
        end += len(GAP) + (column.total if column.bar else column.width)
        if x < end:
            return column.key
    return "name"


def row_line(row: Row, shape: Layout, *, marked: bool, cursor: bool) -> Line:
    """One row of the tree."""
    line: Line = [("▌" if cursor else " ", "accent"), _state(row, marked), *_name(row, shape.name)]
    for column in shape.columns:
        line.append((GAP, ""))
        line.extend(_cell(row, column))
    return line


def _state(row: Row, marked: bool) -> tuple[str, str]:
    if marked:
        return ("●", "marked")
    return ("✗", "pruned") if row.pruned else (" ", "")


def _name(row: Row, width: int) -> Line:
    if isinstance(row, LayerRow):
        fold = "▾ " if row.unfolded else "▸ "
        text = f"blk.{row.layer}"
        number = row.summary.number
        if row.pruned:
            return [(fold, "faint"), (fit(f"{text} pruned", width), "pruned")]
        if number != row.layer:
            moved = f" → {number}"
            role = fit(f"  {_role(row)}", width - len(text) - len(moved))
            return [(fold, "muted"), (text, "strong"), (moved, "changed"), (role, "faint")]
        return [(fold, "muted"), (text, "strong"), (fit(f"  {_role(row)}", width - len(text)), "faint")]
    role = "faint" if row.pruned else "text"
    if row.depth:
        return [("  ", ""), (_shared_sign(row), "faint"), (fit(clean(row.tensor.short), width - 2), role)]
    return [("  ", ""), (fit(clean(row.name.removesuffix(".weight")), width), role)]


def _role(row: LayerRow) -> str:
    return row.session.roles.get(row.layer, "")


def _shared_sign(row: TensorRow) -> str:
    return "≡ " if row.session.shares_input(row.name) else "  "


def _cell(row: Row, column: Column) -> Line:
    if column.key in METRICS:
        return _metric_cell(row, METRICS[column.key], column)
    text, role = _CELLS[column.key](row)
    if column.key == "type":
        return _type_cell(row, column.width)
    return [(fit(text, column.width, "right" if column.right else "left"), role)]


def _metric_cell(row: Row, metric: Metric, column: Column) -> Line:
    value = row.metric(metric.key)
    text = fit(metric.text(value) if value is not None else "", column.width, "right")
    short = None if isinstance(row, LayerRow) else row.tensor.short
    part = row.session.measurements.fraction(metric, short, value)
    bar: Line = []
    if column.bar:
        role = "faint" if row.pruned or part is None else figures.ramp(part)
        drawn = "" if part is None else figures.level(part) if column.bar == 1 else figures.bar(part, column.bar)
        bar = [(" " + drawn.ljust(column.bar), role)]
    return [(text, "faint" if row.pruned else "text" if isinstance(row, LayerRow) else "muted"), *bar]


def _type_cell(row: Row, width: int) -> Line:
    if isinstance(row, LayerRow):
        summary = row.summary
        if row.pruned:
            return [(fit("", width), "")]
        return [(fit(f"{summary.bpw:.2f} bpw", width), "changed" if summary.changed else "muted")]
    op = row.op
    if row.pruned:
        return [(fit(op.from_type, width), "faint")]
    if op.to_type == op.from_type:
        return [(fit(op.from_type, width), "muted")]
    return [(f"{op.from_type}→", "muted"), (fit(op.to_type, width - len(op.from_type) - 1), "changed")]


def shape_text(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.ne)) or "scalar"


def _shape(row: Row) -> tuple[str, str]:
    if isinstance(row, LayerRow):
        return figures.count(row.layer_.n_elements), "faint"
    return shape_text(row.tensor), "faint" if row.pruned else "muted"


def _size(row: Row) -> tuple[str, str]:
    if row.pruned:
        return "–", "faint"
    if isinstance(row, LayerRow):
        return figures.size(row.summary.nbytes), "text"
    return figures.size(row.op.nbytes), "muted"


def _before(row: Row) -> tuple[str, str]:
    nbytes = row.summary.before if isinstance(row, LayerRow) else row.tensor.nbytes
    return figures.size(nbytes), "muted"


def _why(row: Row) -> tuple[str, str]:
    if isinstance(row, LayerRow):
        return ("–" if row.pruned else " ".join(row.summary.types)), "faint"
    return clean(row.op.reason), "faint" if row.pruned else "muted"


_CELLS: dict[str, Callable[[Row], tuple[str, str]]] = {
    "shape": _shape,
    "type": lambda row: ("", ""),
    "size": _size,
    "before": _before,
    "why": _why,
}
