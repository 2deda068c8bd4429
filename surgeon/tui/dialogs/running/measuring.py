"""A run of the engine as it goes, and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.binding import Binding, BindingType

from surgeon import figures
from surgeon.measure.progress import Standing
from surgeon.trials.figure_table import shown_in
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.dialogs.running.job import JobDialog
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.spans import Line, clean, fit, wrap
from surgeon.tui.jobs.measuring import MeasureJob

_RUN_LINES = 6


class MeasureDialog(JobDialog):
    """Stands below the tree, which may change meanwhile. l shows llama.cpp's log."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("l", "log", show=False)]
    place = "prompt measure"
    keys_running = "Esc run in background · x stop · l log"
    keys_ended = "Enter close · l log"

    def __init__(self, job: MeasureJob, take: Callable[[tuple[int, ...]], None]) -> None:
        """take: prunes the layers that a scan has chosen."""
        super().__init__(job, job.title)
        self.job, self._take = job, take

    def _keys(self) -> str:
        chosen = self.job.chosen()
        if not chosen:
            return super()._keys()
        return f"Enter prune {','.join(map(str, chosen))} · Esc close · l log"

    def action_close(self) -> None:
        chosen = self.job.chosen()
        super().action_close()
        if chosen:
            self._take(chosen)

    def redraw(self) -> None:
        super().redraw()
        if self.query(Canvas):  # results may need more lines than the run did
            canvas = self.query_one(Canvas)
            canvas.styles.height = max(_RUN_LINES, min(len(canvas.lines), self.app.size.height // 2))

    def job_lines(self, width: int) -> list[Line]:
        job = self.job
        if not job.running:
            if job.failure:
                role = "warning" if job.cancelled.is_set() else "pruned"
                return wrap(clean(job.failure), width, role)
            return job.result()
        if job.cancelled.is_set():
            return [[("stopping …", "warning")]]
        if job.standing is None:
            return [[("starting …", "muted")]]
        return standing_lines(job.standing, width, job.workers.standing)

    def action_log(self) -> None:
        self.app.push_screen(Log(self.job.log()))


class Log(Reader):
    """What llama.cpp wrote."""

    def __init__(self, text: str) -> None:
        super().__init__("llama.cpp's log", "↑ ↓ PgUp PgDn move · Esc close", tall=True)
        self.log_text = text

    def lines(self, width: int) -> list[Line]:
        lines = self.log_text.splitlines()[-2000:]
        return [[(fit(clean(line), width).rstrip(), "muted")] for line in lines] or [[("empty so far", "muted")]]


def standing_lines(standing: Standing, width: int, workers: str = "") -> list[Line]:
    """Stage, bar, what it is at with the time left, and the figures so far. workers: and how far they are."""
    step = f"{standing.index + 1} of {standing.count}" if standing.count > 1 else ""
    left = standing.seconds_left
    note = fit(clean(standing.note), max(10, width - 18)).rstrip()
    return [
        [(standing.stage, "strong"), (f"  {step}", "muted"), (f"  {workers}" if workers else "", "accent")],
        [],
        _bar(standing.part, width),
        [(note, "text"), (f"   {figures.duration(left)} left" if left is not None else "", "muted")],
        _figures(standing.figures),
    ]


def _bar(part: float, width: int) -> Line:
    room = max(4, width - 7)
    filled = figures.bar(part, room).rstrip() if part > 0 else ""
    return [(filled, "accent"), ("·" * (room - len(filled)), "faint"), (f"{100 * part:6.1f}%", "text")]


def _figures(values: dict[str, float]) -> Line:
    line: Line = []
    for figure in shown_in("running"):
        if figure.key not in values:
            continue
        text = figure.text(values[figure.key])
        error = values.get(figure.error)
        if error is not None:
            text += f" ±{figure.text(error)}"
        line += [(f"{figure.name} ", "muted"), (f"{text}   ", "text")]
    return line
