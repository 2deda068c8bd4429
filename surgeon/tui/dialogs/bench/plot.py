"""Size against KL divergence over the trials, and what the letters stand for."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon import figures
from surgeon.session.session import Session
from surgeon.trials.journal import Trial
from surgeon.trials.tables import measured_alike, measured_front, measured_on
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.scatter import LETTERS, Point, scatter
from surgeon.tui.drawing.spans import Line, clean, fit_end

MOST_ROWS = 30  # of the plot; a higher one is not easier to read


class TrialPlot(Reader):
    def __init__(self, trials: Sequence[Trial], *, now: Now | None = None, here: str = "") -> None:
        """now: the plan on the table; here: id of the trial under the cursor."""
        hint = "◆ front, nothing beats it · [a] selected · + or ▲ the plan now · Esc"
        super().__init__("size against KL divergence", hint, tall=True)
        self.trials, self.now, self.here = trials, now, here

    def lines(self, width: int) -> list[Line]:
        height = int(self.app.size.height * 0.9) - 2  # nine tenths of the screen, without the frame
        return plot_lines(self.trials, width, height, now=self.now, here=self.here)


# The plan on the table: bytes, and the KL divergence that is predicted for it, where it is.
Now = tuple[int, float | None]


def planned_point(session: Session) -> Now:
    predicted = session.predicted
    return session.resolution.total_bytes, predicted.kld if predicted is not None else None


def plot_lines(
    trials: Sequence[Trial], width: int, height: int, *, now: Now | None = None, here: str = ""
) -> list[Line]:
    """The plot and its legend, smallest first; trials that cannot be compared with the newest are counted below it."""
    alike = measured_alike(trials)
    measured = ((trial, trial.figure("mean_kld")) for trial in trials if trial.id in alike)
    placed = [(trial, kld) for trial, kld in measured if kld is not None]
    placed.sort(key=lambda pair: pair[0].size)
    if not placed:
        return [[("no trial has a KL divergence yet: e measures", "muted")]]
    on_front = measured_front(trials)
    points = [
        Point(trial.size, kld, letter, trial.id in on_front, trial.best, trial.id == here)
        for (trial, kld), letter in zip(placed, LETTERS, strict=False)
    ]
    plan = now[0] if now is not None else None
    shown = list(points)
    if now is not None and now[1]:
        shown.append(Point(now[0], now[1], "+"))
    rows = min(MOST_ROWS, max(8, height - min(len(points), 6) - 2))
    lines = scatter(shown, width, rows, f"mean KLD, {clean(measured_on(placed[0][0]))}", mark=plan)
    if now is not None:
        words = f"KLD {now[1]:.6f} predicted" if now[1] else "KLD not known (F predicts it, e measures it)"
        lines.append([(f"{'+' if now[1] else '▲'} the plan now: {figures.size(now[0])}, {words}", "changed")])
    for (trial, kld), point in zip(placed, points, strict=False):
        lines.append(
            [
                ("▸" if point.here else " ", "changed"),
                (f"{point.letter} ", "changed" if point.best else "accent" if point.front else "text"),
                ("◆ " if point.front else "  ", "accent"),
                (fit_end(clean(trial.label), max(12, width - 33)), "strong" if trial.best else "text"),
                (figures.size(trial.size).rjust(10), "muted"),
                (f"{kld:.6f}".rjust(12), "text"),
            ]
        )
    left = len(trials) - len(points)
    return lines if not left else [*lines, [(f"{left} more: not measured, or not on the same text", "faint")]]
