"""What all dialogs share that begin a job, or leave it to the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

from textual.binding import Binding, BindingType

from surgeon.tui.dialogs.base import Dialog

Result = TypeVar("Result")


class BeginOrQueue(Dialog[Result]):
    """Enter begins; ^L queues, and so does Enter while something else runs. A subclass has `action_take` and
    `action_queue`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", show=False, priority=True),
        Binding("ctrl+l", "queue", show=False, priority=True),
    ]
    to_queue: Callable[[Result], None] | None = None
    """What ^L does with the answer; None where it cannot wait in the queue."""
    busy = False
    """Something runs: Enter queues, too."""

    def leave_to_queue(self, answer: Result) -> None:
        self.dismiss(None)
        if self.to_queue is not None:
            self.to_queue(answer)
