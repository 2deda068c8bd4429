"""A write as it runs, and its end."""

from __future__ import annotations

from surgeon import figures
from surgeon.tui.dialogs.running.job import JobDialog
from surgeon.tui.drawing.spans import Line, clean, elide_start, fit, wrap
from surgeon.tui.jobs.writing import WriteJob
from surgeon.write.operation import Progress, Summary


class ProgressDialog(JobDialog):
    place = "narrow write"
    keys_running = "Esc run in background · x stop"
    keys_ended = "Enter close"

    def __init__(self, job: WriteJob) -> None:
        super().__init__(job, "write")
        self.job = job

    def job_lines(self, width: int) -> list[Line]:
        job = self.job
        path: Line = [(elide_start(clean(str(job.out)), width), "strong")]
        if job.summary is not None:
            return [path, [], *summary_lines(job.summary)]
        if job.failure:
            role = "warning" if job.cancelled.is_set() else "pruned"
            return [path, [], *wrap(clean(job.failure), width, role)]
        if job.cancelled.is_set():
            return [path, [], [("stopping …", "warning")]]
        if job.progress is None:
            return [path, [], [("opening …", "muted")]]
        lines = [path, [], *progress_lines(job.progress, width)]
        if job.workers.standing:
            lines.append([(job.workers.standing, "accent")])
        return lines


def progress_lines(progress: Progress, width: int) -> list[Line]:
    part = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
    lines: list[Line] = [_bar("all", part, width)]
    if progress.stage == "compiling":
        waited = figures.duration(progress.elapsed)
        note = f"compiling kernels (first run): {progress.tensor}  {waited}"
        return [*lines, [], [(fit(note, width), "muted")]]
    if progress.stage == "syncing":
        return [*lines, [], [("waiting for the disk, then reading the headers back", "muted")]]
    of_tensor = progress.tensor_done / progress.tensor_total if progress.tensor_total else 1.0
    left = progress.seconds_left
    speed = f"{figures.size(progress.bytes_per_second)}/s" if progress.bytes_per_second else ""
    return [
        *lines,
        _bar("tensor", of_tensor, width),
        [],
        [(fit(clean(progress.tensor), 36), "text"), (f"{progress.index} of {progress.count} tensors", "muted")],
        [
            (f"{figures.size(progress.done_bytes)} of {figures.size(progress.total_bytes)}", "text"),
            (f"   {speed}   ", "muted"),
            (f"{figures.duration(left)} left" if left is not None else "", "text"),
        ],
    ]


def _bar(label: str, part: float, width: int) -> Line:
    room = max(4, width - 15)
    filled = figures.bar(part, room) if part > 0 else " " * room
    return [
        (f"{label:<8}", "muted"),
        (filled.rstrip(), "accent"),
        ("·" * (room - len(filled.rstrip())), "faint"),
        (f"{100 * part:5.1f}%", "text"),
    ]


def summary_lines(summary: Summary) -> list[Line]:
    speed = summary.source_bytes / summary.seconds if summary.seconds else 0.0
    lines: list[Line] = [
        [
            ("written", "good"),
            (f"  {figures.size(summary.nbytes)} in {summary.seconds:.1f} s, {figures.size(speed)}/s", "text"),
        ],
        [(f"{figures.counted(summary.converted, 'tensor')} converted, {summary.copied} copied", "muted")],
    ]
    if summary.resumed:
        lines.append([(f"{summary.resumed} of them were already finished", "muted")])
    if len(summary.paths) > 1:
        lines.append([(f"{len(summary.paths)} files", "muted")])
    return lines
