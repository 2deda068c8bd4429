"""Experts × layers on one screen: look where the work is done, mark what is to go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from surgeon import figures
from surgeon.anatomy import expert_model
from surgeon.errors import SurgeonError
from surgeon.layer_lists import spans
from surgeon.resolve.tensor_op import TensorOp
from surgeon.session.experts import (
    MEASURES,
    Cell,
    Grid,
    expert_sums,
    grid,
    number_pruned,
    prune_least,
    toggle,
    values_of,
)
from surgeon.session.session import Session
from surgeon.tui.dialogs.base import Dialog
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.spans import Line, fit

LEVELS = " ░▒▓█"
LABEL = 6  # cells of the layer numbers
_STEPS = 32  # `+` prunes about this part of the experts


class Experts(Dialog[None]):
    """It covers the tree, which need not follow before the dialog is left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(-1,0)", show=False, priority=True),
        Binding("down,j", "go(1,0)", show=False, priority=True),
        Binding("left,h", "go(0,-1)", show=False, priority=True),
        Binding("right,l", "go(0,1)", show=False, priority=True),
        Binding("home,g", "go(-999,-999)", show=False, priority=True),
        Binding("end,G", "go(999,999)", show=False, priority=True),
        Binding("space,p", "mark", show=False, priority=True),
        Binding("plus", "more(1)", show=False, priority=True),
        Binding("minus", "more(-1)", show=False, priority=True),
        Binding("v", "measure", show=False, priority=True),
        Binding("z", "zoom", show=False, priority=True),
        Binding("u", "undo", show=False, priority=True),
        Binding("q,enter", "leave", show=False, priority=True),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        sums = expert_sums(session)
        self.measure = next((one for one in MEASURES if values_of(sums, one) is not None), "saliency")
        self.row = self.column = self.top = 0
        self.zoomed = False
        self.said = ""
        self._grid: Grid | None = None
        self._drawn_for = (0, 0)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog experts") as frame:
            frame.border_title = "experts of every layer"
            frame.border_subtitle = "Space prune · + - least of all layers · v figure · z zoom · u undo · Esc"
            yield Canvas(self._lines, name="experts")

    # --- what is drawn

    def _lines(self, width: int, height: int) -> list[Line]:
        shown = max(1, height - 3)
        columns = max(1, width - LABEL)
        if self._grid is None or self._drawn_for != (columns, shown):
            self._drawn_for = columns, shown
            self._grid = grid(self.session, self.measure, columns, 1 << 16 if self.zoomed else shown)
        found = self._grid
        self.row, self.column = min(self.row, len(found.rows) - 1), min(self.column, len(found.rows[0]) - 1)
        self.top = max(min(self.top, self.row), self.row - shown + 1)
        rows = found.rows[self.top : self.top + shown]
        return [
            [(fit(MEASURES[self.measure] + self._binning(found), width), "head")],
            *(self._row(row, number == self.row - self.top) for number, row in enumerate(rows)),
            *[[] for _ in range(shown - len(rows))],
            self._cell_line(found.rows[self.row][self.column], width),
            self._plan_line(width),
        ]

    @staticmethod
    def _binning(found: Grid) -> str:
        parts = [
            f"{found.experts_per_column} experts" if found.experts_per_column > 1 else "",
            f"{found.layers_per_row} layers" if found.layers_per_row > 1 else "",
        ]
        words = " × ".join(part for part in parts if part)
        return f"   (a cell: {words})" if words else ""

    def _row(self, row: tuple[Cell, ...], here: bool) -> Line:
        layers = row[0].layers
        label = str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
        line: Line = [(label.rjust(LABEL - 1) + " ", "strong" if here else "muted")]
        for column, cell in enumerate(row):
            sign, role = sign_of(cell)
            if here and column == self.column:
                sign, role = sign if sign != " " else "_", "marked"
            line.append((sign, role))
        return line

    def _cell_line(self, cell: Cell, width: int) -> Line:
        experts = f"{cell.experts[0]}" if len(cell.experts) == 1 else f"{cell.experts[0]}-{cell.experts[-1]}"
        words = [f"layer {spans(cell.layers, 4)}, expert {experts}"]
        sums = expert_sums(self.session)
        layers = [layer for layer in cell.layers if sums is not None and layer < len(sums.calls)]
        if sums is not None and layers:
            part = (layers, slice(cell.experts.start, cell.experts.stop))
            calls = sums.calls[part]
            words.append(f"{calls.sum():.0f} calls ({100 * calls.sum() / max(1.0, sums.calls[layers].sum()):.2f}%)")
            if sums.gate.any():
                words.append(f"saliency {sums.saliency[part].sum() / max(1.0, calls.sum()):.4g}")
        words += [f"{cell.idle} never called"] if cell.idle else []
        words += [self._bits(cell)]
        words += ["pruned" if cell.pruned == 1 else f"{100 * cell.pruned:.0f}% pruned"] if cell.pruned else []
        return [(fit(" " + " · ".join(words), width), "text")]

    def _bits(self, cell: Cell) -> str:
        ops = [op for layer in cell.layers for op in self._expert_ops(layer)]
        return " ".join(dict.fromkeys(op.to_type for op in ops))

    def _expert_ops(self, layer: int) -> list[TensorOp]:
        names = [tensor.name for tensor in expert_model(self.session.model).layers[layer] if "_exps.w" in tensor.name]
        return [self.session.ops[name] for name in names if name in self.session.ops]

    def _plan_line(self, width: int) -> Line:
        if self.said:
            return [(fit(f" {self.said}", width), "warning")]
        resolution, count = self.session.resolution, expert_model(self.session.model).count
        numbers = sorted(number_pruned(self.session))
        if len(numbers) > 1:
            text = f"{numbers[0]} to {numbers[-1]} of {count} pruned: every layer must lose as many"
        else:
            text = f"{numbers[0] if numbers else 0} of {count} pruned in every layer"
        sizes = f"{figures.size(resolution.total_bytes)}, {resolution.bpw:.2f} bpw"
        errors = f" · {len(resolution.errors)} errors, ! lists them" if resolution.errors else ""
        return [(fit(f" {text} · {sizes}{errors}", width), "pruned" if len(numbers) > 1 else "accent")]

    def redraw(self, *, figures_changed: bool = False) -> None:
        if figures_changed:
            self._grid = None
        self.query_one("#experts", Canvas).redraw()

    # --- keys

    @property
    def cell(self) -> Cell | None:
        return self._grid.rows[self.row][self.column] if self._grid is not None else None

    def action_go(self, down: int, right: int) -> None:
        if self._grid is not None:
            self.row = max(0, min(len(self._grid.rows) - 1, self.row + down))
            self.column = max(0, min(len(self._grid.rows[0]) - 1, self.column + right))
            self.said = ""
            self.redraw()

    def action_mark(self) -> None:
        cell = self.cell
        if cell is not None:
            self._edit(lambda: toggle(self.session, cell))

    def action_more(self, direction: int) -> None:
        """The least salient of every layer, a few more or fewer than now."""
        model = expert_model(self.session.model)
        step = max(1, model.count // (_STEPS * model.unit)) * model.unit
        number = max(0, min(model.count - step, max(number_pruned(self.session), default=0) + direction * step))
        by = "calls" if self.measure == "calls" else "saliency"
        self._edit(lambda: prune_least(self.session, str(number), by))

    def action_measure(self) -> None:
        known = [one for one in MEASURES if values_of(expert_sums(self.session), one) is not None]
        if known:
            self.measure = known[(known.index(self.measure) + 1) % len(known)]
            self.redraw(figures_changed=True)

    def action_zoom(self) -> None:
        """One layer in a row, or all layers on the screen."""
        self.zoomed = not self.zoomed
        self.row = self.top = 0
        self.redraw(figures_changed=True)

    def action_undo(self) -> None:
        self._edit(lambda: self.session.undo() or "nothing to undo")

    def _edit(self, change: Callable[[], str]) -> None:
        self.said = ""
        try:
            change()
        except SurgeonError as error:
            self.said = str(error)
        self.redraw(figures_changed=True)
        self.app.plan_changed()


def sign_of(cell: Cell) -> tuple[str, str]:
    """× pruned, / half of them or more; 0 never called; ? not measured; else the darker, the more."""
    if cell.pruned >= 0.5:
        return "×" if cell.pruned == 1 else "/", "pruned"
    if math.isnan(cell.level):
        return "?", "faint"
    if cell.idle == len(cell.layers) * len(cell.experts):
        return "0", "warning"
    step = min(4, int(cell.level * 5))
    return LEVELS[step], "pruned" if cell.pruned else f"ramp{step}"
