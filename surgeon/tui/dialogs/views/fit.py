"""The fit: a size is typed or stepped to, and everything that follows from it is shown at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from surgeon.errors import SurgeonError
from surgeon.fit.allocation import Allocator, Fit
from surgeon.fit.fragility import parts_of
from surgeon.fit.target import read_size
from surgeon.trials.journal import Trial
from surgeon.tui.dialogs.base import Dialog, Frame
from surgeon.tui.drawing.fit_lines import (
    bytes_lines,
    curve_lines,
    fragile_lines,
    improvement_lines,
    outcome_lines,
)
from surgeon.tui.drawing.spans import Line

_POINTS = 14  # of the curve
_STEP = 1.02  # of the size, by one key
_FEWEST_ROWS = 6  # of the curve
_ROOMY = 30  # rows from which more of the next best bytes are shown


class FitDialog(Dialog[Fit]):
    """Answers with the fit to take."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", show=False, priority=True),
        Binding("plus,up", "step(1)", show=False, priority=True),
        Binding("minus,down", "step(-1)", show=False, priority=True),
        Binding("tab", "turn", show=False, priority=True),
    ]

    def __init__(self, allocator: Allocator, nbytes: int, trials: Sequence[Trial]) -> None:
        super().__init__()
        self.allocator, self.trials = allocator, trials
        self.nbytes = min(allocator.most, max(allocator.least, nbytes))
        self.curve = allocator.curve(_POINTS)
        self.fit: Fit | None = None
        self.shows_parts = False

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog tall") as frame:
            frame.border_title = "fit"
            example = f"6.0{_unit(self.nbytes)[0]}"
            frame.border_subtitle = f"type {example} or 4.25 (bpw) · + − · Tab fragile parts · Enter apply · Esc"
            yield Input(self._text())  # selected, so that typing replaces it
            yield Static(id="answer")

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Input))
        self._show(self.query_one(Input).value)

    def _text(self) -> str:
        unit, factor = _unit(self.nbytes)
        return f"{self.nbytes / factor:.2f}{unit}"

    def resized(self) -> None:
        self._show(self.query_one(Input).value)

    @on(Input.Changed)
    def changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, text: str) -> None:
        try:
            self.nbytes = self._bytes(text)
            self.fit = self.allocator.fit(self.nbytes, "size")
            lines = self._lines(self.fit)
        except SurgeonError as error:
            self.fit = None
            lines = [[(str(error).removeprefix("size: ").removeprefix("size "), "warning")]]
        self.query_one("#answer", Static).update(self.text(lines))

    def _bytes(self, text: str) -> int:
        """Of a size with its unit, or of bits per weight without. Raises UsageError."""
        if text == self._text():
            return self.nbytes  # not rounded to what is shown
        text = text.strip()
        digits = text.replace(".", "", 1)
        if digits.isascii() and digits.isdigit() and float(text) < 33:
            return self.allocator.bytes_at(float(text))
        return read_size(text, "size")

    def _lines(self, fit: Fit) -> list[Line]:
        # Nine tenths of the screen, without frame and field.
        width, height = min(92, self.app.size.width - 8), int(0.9 * self.app.size.height) - 3
        legend = 3 if height >= _ROOMY else 1  # lines that name the bar's parts, or the mixes
        lines = [*outcome_lines(fit, self.allocator.mix_within(self.nbytes)), *bytes_lines(fit, width, legend)]
        if self.shows_parts:
            parts = parts_of(self.allocator.model, self.allocator.costs)
            return [*lines, [], *fragile_lines(parts, width, height - len(lines) - 1)]
        better = improvement_lines(fit, 6 if height >= _ROOMY else 3)
        rows = height - len(lines) - len(better) - legend
        if rows >= _FEWEST_ROWS:
            lines += curve_lines(self.curve, self.allocator.mixes, self.trials, fit, width, rows, legend)
        return [*lines, *better]

    def action_step(self, step: int) -> None:
        factor = _STEP if step > 0 else 1 / _STEP
        self.nbytes = min(self.allocator.most, max(self.allocator.least, round(self.nbytes * factor)))
        self.query_one(Input).value = self._text()
        self.query_one(Input).cursor_position = len(self._text())

    def action_turn(self) -> None:
        """The curve and the next best bytes, or the fragile parts."""
        self.shows_parts = not self.shows_parts
        self._show(self.query_one(Input).value)

    def action_take(self) -> None:
        self._show(self.query_one(Input).value)
        if self.fit is not None:
            self.dismiss(self.fit)


def _unit(nbytes: int) -> tuple[str, float]:
    """What a size is typed in, and its bytes."""
    return ("GB", 1e9) if nbytes >= 1e9 else ("MB", 1e6)
