"""Experts × layers on one screen: look where the work is done, mark what is to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from surgeon import figures
from surgeon.anatomy import expert_model
from surgeon.errors import SurgeonError
from surgeon.layer_lists import spans
from surgeon.resolve.tensor_op import TensorOp
from surgeon.session.experts.curve import ExpertCurve, ScanPoint
from surgeon.session.experts.filters import EXAMPLE, ExpertFilter, parse_expert_filter
from surgeon.session.experts.grid import Cell, Grid, grid, number_pruned, prune_least, shown_sets, toggle, with_plan
from surgeon.session.experts.table import MEASURES, ORDERS, ExpertTable, expert_sums, table, values_of
from surgeon.session.session import Session
from surgeon.tui.dialogs.base import Dialog, Frame
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.expert_lines import LABEL, LEGEND, codes, curve_lines, row_line
from surgeon.tui.drawing.spans import Line, fit

_STEPS = 32  # `+` prunes about this part of the experts
_KEYS = "Space + - prune · / filter · s sort · v figure · c curve · z zoom · Esc"
_ALL_KEYS = (
    "Space prune · + - the least · / filter · a all shown · s sort · v figure · c curve · z zoom · u undo · Esc close"
)
_NARROW = 116  # cells from which all keys fit below
NO_CURVE = "no curve yet: surgeon expert-scan -m MODEL --imatrix F -f TEXT makes it"


class Experts(Dialog[None]):
    """It covers the tree, which need not follow before the dialog is left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(-1,0)", show=False, priority=True),
        Binding("down,j", "go(1,0)", show=False, priority=True),
        Binding("left,h", "go(0,-1)", show=False, priority=True),
        Binding("right,l", "go(0,1)", show=False, priority=True),
        Binding("home,g", "go(-9999,-9999)", show=False, priority=True),
        Binding("end,G", "go(9999,9999)", show=False, priority=True),
        Binding("pageup,ctrl+b", "page(-1)", show=False, priority=True),
        Binding("pagedown,ctrl+f", "page(1)", show=False, priority=True),
        Binding("space,p", "mark", show=False, priority=True),
        Binding("a", "mark_shown", show=False, priority=True),
        Binding("plus", "more(1)", show=False, priority=True),
        Binding("minus", "more(-1)", show=False, priority=True),
        Binding("v", "measure", show=False, priority=True),
        Binding("s", "sort", show=False, priority=True),
        Binding("slash,f", "filter", show=False, priority=True),
        Binding("c", "curve", show=False, priority=True),
        Binding("z", "zoom", show=False, priority=True),
        Binding("u", "undo", show=False, priority=True),
        Binding("q,enter", "leave", show=False, priority=True),
    ]

    def __init__(self, session: Session, curve: ExpertCurve | None = None) -> None:
        """curve: what was measured of pruning experts of this model."""
        super().__init__()
        self.session = session
        self.curve = curve or ExpertCurve()
        sums = expert_sums(session)
        self.measure = next((one for one in MEASURES if values_of(sums, one) is not None), "saliency")
        self.order = "number"
        self.filter: ExpertFilter | None = None
        self.row = self.column = self.top = 0
        self.zoomed = self.showing_curve = False
        self.said = ""
        self._table: ExpertTable | None = None
        self._grid: Grid | None = None
        self._grid_plan = session.plan
        self._codes: NDArray[np.uint8] = np.zeros((0, 0), np.uint8)
        self._rows: dict[int, Line] = {}
        self._drawn_for = (0, 0)

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog experts") as frame:
            frame.border_title = "experts of every layer"
            frame.border_subtitle = self._keys()
            yield Canvas(self._lines, name="experts")

    def _keys(self) -> str:
        return _ALL_KEYS if self.app.size.width >= _NARROW else _KEYS

    def resized(self) -> None:
        self.query_one(Frame).border_subtitle = self._keys()

    # --- what is drawn

    def _lines(self, width: int, height: int) -> list[Line]:
        if self.showing_curve:
            return self._curve_lines(width, height)
        shown = max(1, height - 3)
        found = self._grid_for(max(1, width - LABEL), shown)
        rows, columns = found.shape
        title = [(fit(self._title(found), width), "head")]
        if not rows:
            none: Line = [(fit(f" no expert: {self.filter.text if self.filter else ''}", width), "warning")]
            return [title, none, *[[] for _ in range(shown - 1)], [], self._plan_line(width)]
        self.row, self.column = min(self.row, rows - 1), min(self.column, columns - 1)
        self.top = max(0, min(self.top, self.row, rows - shown), self.row - shown + 1)
        last = min(rows, self.top + shown)
        return [
            title,
            *(self._row_line(row) for row in range(self.top, last)),
            *_below(shown - (last - self.top), width),
            self._cell_line(found.cell(self.row, self.column), width),
            self._plan_line(width),
        ]

    def _grid_for(self, columns: int, shown: int) -> Grid:
        if self._table is None:
            damages = {layer: point.kld for layer, point in self.curve.alone().items()}
            self._table = table(self.session, self.measure, self.order, self.filter, damages)
        if self._grid is None or self._drawn_for != (columns, shown):
            self._drawn_for = columns, shown
            self._grid = grid(self._table, self.session.plan, columns, 1 << 16 if self.zoomed else shown)
            self._codes, self._rows = codes(self._grid), {}
        elif self._grid_plan is not self.session.plan:
            self._grid = with_plan(self._grid, self.session.plan)
            before, self._codes = self._codes, codes(self._grid)
            same = (before == self._codes).all(axis=1)
            self._rows = {row: line for row, line in self._rows.items() if same[row]}
        self._grid_plan = self.session.plan
        return self._grid

    def _row_line(self, row: int) -> Line:
        assert self._grid is not None
        if row == self.row:
            return row_line(self._grid, self._codes, row, self.column)
        if row not in self._rows:
            self._rows[row] = row_line(self._grid, self._codes, row, None)
        return self._rows[row]

    def _title(self, found: Grid) -> str:
        parts = [
            f"{found.experts_per_column} experts" if found.experts_per_column > 1 else "",
            f"{found.layers_per_row} layers" if found.layers_per_row > 1 else "",
        ]
        binned = " × ".join(part for part in parts if part)
        words = [MEASURES[self.measure], ORDERS[self.order], f"a cell: {binned}" if binned else ""]
        if self.filter is not None:
            words.append(f"{figures.counted(int(found.shown.sum()), 'expert')} with {self.filter.text}")
        return "  ·  ".join(word for word in words if word)

    def _cell_line(self, cell: Cell, width: int) -> Line:
        numbers = sorted({expert for numbers in cell.sets.values() for expert in numbers})
        words = [f"layer {spans(cell.layers, 4)}, " + (f"expert {spans(numbers, 4)}" if numbers else "filtered out")]
        sums = expert_sums(self.session)
        measured = [layer for layer in cell.layers if sums is not None and layer < len(sums.calls)]
        if sums is not None and measured and numbers:
            calls = sum(sums.calls[layer, list(cell.sets[layer])].sum() for layer in measured)
            words.append(f"{calls:.0f} calls ({100 * calls / max(1.0, sums.calls[measured].sum()):.2f}%)")
            if sums.gate.any():
                saliency = sum(sums.saliency[layer, list(cell.sets[layer])].sum() for layer in measured)
                words.append(f"saliency {saliency / max(1.0, calls):.4g}")
        words += [f"{cell.idle} never called"] if cell.idle else []
        words += [self._bits(cell)]
        words += ["pruned" if cell.pruned == 1 else f"{100 * cell.pruned:.0f}% pruned"] if cell.pruned else []
        alone = [point for layer in cell.layers if (point := self.curve.alone().get(layer)) is not None]
        if len(cell.layers) == 1 and alone:
            words.append(f"KLD {figures.divergence(alone[0].kld)} at {alone[0].share:.3g}% of this layer")
        return [(fit(" " + " · ".join(filter(None, words)), width), "text")]

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
        measured = self._measured()
        kld = f" · KLD {figures.divergence(measured.kld)} ±{figures.divergence(measured.error)}" if measured else ""
        number = len(resolution.errors)
        errors = f" · {number} error{'s' if number > 1 else ''}: ! after Esc" if number else ""
        return [(fit(f" {text} · {sizes}{kld}{errors}", width), "pruned" if len(numbers) > 1 else "accent")]

    def _measured(self) -> ScanPoint | None:
        """What a scan found with just the experts silenced that the plan prunes, all layers staying."""
        plan = self.session.plan
        return None if plan.pruned or not plan.pruned_experts else self.curve.measured(dict(plan.pruned_experts))

    def _curve_lines(self, width: int, height: int) -> list[Line]:
        share = 100 * max(number_pruned(self.session), default=0) / expert_model(self.session.model).count
        by = "calls" if self.measure == "calls" and "calls" in self.curve.by else next(iter(self.curve.by), "saliency")
        lines = curve_lines(self.curve, by, (share, self._measured()), width, height)
        return lines + [[] for _ in range(height - len(lines))]

    def redraw(self, *, changed: str = "") -> None:
        """changed: what must be worked out anew: "plan", "cells" or "table"."""
        if changed == "table" or (changed == "plan" and self.filter is not None):
            self._table = None
        if changed == "cells" or self._table is None:
            self._grid = None
        self.query_one("#experts", Canvas).redraw()

    # --- keys

    @property
    def cell(self) -> Cell | None:
        there = self._grid is not None and self._grid.shape[0] > 0 and not self.showing_curve
        return self._grid.cell(self.row, self.column) if there and self._grid is not None else None

    def action_go(self, down: int, right: int) -> None:
        if self._grid is not None and self._grid.shape[0]:
            rows, columns = self._grid.shape
            self.row = max(0, min(rows - 1, self.row + down))
            self.column = max(0, min(columns - 1, self.column + right))
            self.said = ""
            self.redraw()

    def action_page(self, direction: int) -> None:
        self.action_go(direction * max(1, self._drawn_for[1] - 1), 0)

    def action_mark(self) -> None:
        cell = self.cell
        if cell is not None:
            self._edit(lambda: toggle(self.session, cell.sets))

    def action_mark_shown(self) -> None:
        """All that the filter leaves."""
        if self.filter is None or self._table is None:
            self.said = "/ filters first; + prunes the least of all layers"
            self.redraw()
            return
        sets = shown_sets(self._table)
        self._edit(lambda: toggle(self.session, sets))

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
            self.redraw(changed="table")

    def action_sort(self) -> None:
        """By number, by figure within each layer, and layers by what their lowest quarter matters."""
        orders = list(ORDERS)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        self.redraw(changed="table")

    async def action_filter(self) -> None:
        def check(text: str) -> tuple[bool, Line]:
            try:
                wanted = parse_expert_filter(text)
            except ValueError as error:
                return False, [(str(error), "warning")]
            if wanted is None:
                return True, [(EXAMPLE, "muted")]
            shown = int(table(self.session, self.measure, "number", wanted).shown.sum())
            return True, [(figures.counted(shown, "expert"), "text")]

        def taken(text: str | None) -> None:
            if text is not None:
                self.filter = parse_expert_filter(text)
                self.redraw(changed="table")

        text = self.filter.text if self.filter is not None else ""
        prompt = Prompt("filter experts", check, value=text, hint="Enter take · empty: all · Esc", history="experts")
        prompt.answered = taken
        await self.app.push_screen(prompt)

    def action_curve(self) -> None:
        """The curve of KL divergence, and back."""
        self.showing_curve = not self.showing_curve and bool(self.curve.by)
        self.said = "" if self.curve.by else NO_CURVE
        self.redraw()

    def action_zoom(self) -> None:
        """One layer in a row, or all layers on the screen."""
        self.zoomed = not self.zoomed
        self.row = self.top = 0
        self.redraw(changed="cells")

    def action_undo(self) -> None:
        self._edit(lambda: self.session.undo() or "nothing to undo")

    def _edit(self, change: Callable[[], str]) -> None:
        self.said = ""
        try:
            change()
        except SurgeonError as error:
            self.said = str(error)
        self.redraw(changed="plan")
        self.app.plan_changed()


def _below(rows: int, width: int) -> list[Line]:
    """What is left of the rows: what the signs mean, at their end."""
    legend: Line = [(fit(LEGEND, width), "faint")]
    return [*[[] for _ in range(rows - 1)], legend] if rows else []
