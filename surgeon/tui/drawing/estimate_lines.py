"""What a run will take, for the form that asks for it."""

from __future__ import annotations

from surgeon.measure.estimate import Estimate
from surgeon.measure.speeds import Speeds
from surgeon.tui.drawing.spans import Line


def estimate_lines(estimate: Estimate, speeds: Speeds) -> list[Line]:
    """Time and work, then disk and memory beside what is free; a warning where that is too little."""
    (disk, on_disk), (memory, in_memory) = estimate.on_disk(), estimate.in_memory()
    return [
        [(estimate.time(speeds), "text")],
        [
            (disk, "muted" if on_disk else "warning"),
            (" · ", "muted"),
            (memory, "muted" if in_memory else "warning"),
        ],
    ]
