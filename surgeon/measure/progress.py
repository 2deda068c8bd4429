"""Where a measurement stands, in words that a progress line, a dialog or a log can show alike."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from surgeon.engine.protocol import Loaded, Message, Started, Step, Within


@dataclass(frozen=True, slots=True)
class Standing:
    """One of several stages, one after the other.

    stage: what is being done, the index-th of count (from 0); part: how much of it, 0-1; note: at what it is;
    figures: running results (`ppl`, `mean_kld`, ...); seconds_left: of this stage, None before it can be estimated.
    """

    stage: str
    index: int = 0
    count: int = 1
    part: float = 0.0
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None

    @property
    def of_all(self) -> float:
        """How much of all stages, as if they were equally long: it never goes back."""
        return (self.index + self.part) / self.count


def followed(
    messages: Iterable[Message], stage: str, unit: str, index: int = 0, count: int = 1
) -> Iterator[Message | Standing]:
    """All messages of the engine, with a Standing before each that says where the run is. unit: `chunks`, `tasks`."""
    yield Standing(stage, index, count, note="loading the model")
    start = time.monotonic()
    figures: dict[str, float] = {}
    for message in messages:
        if isinstance(message, Loaded):
            yield Standing(stage, index, count, note=message.description)
        elif isinstance(message, Started):
            start = time.monotonic()
            yield Standing(stage, index, count, note=f"0 of {message.total} {unit}")
        elif isinstance(message, Step | Within):
            part = message.done / message.total if message.total else 1.0
            left = (time.monotonic() - start) * (1 - part) / part if part else None
            note = f"{int(message.done)} of {message.total} {unit}"
            figures = message.values if isinstance(message, Step) else figures
            yield Standing(stage, index, count, part, note, figures, left)
        yield message
