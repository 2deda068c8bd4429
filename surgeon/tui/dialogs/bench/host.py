"""What the bench asks of the main screen."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from surgeon.session.queue import Queue
from surgeon.session.session import Session
from surgeon.tui.answers import Answers
from surgeon.tui.dialogs.forms.form import Form


class Bench(Protocol):
    """The main screen, as far as the bench knows it."""

    session: Session

    @property
    def queue(self) -> Queue: ...

    @property
    def queue_status(self) -> str:
        """How far what the queue runs is."""

    def begin_next(self) -> None: ...

    def matrix_form(self) -> Form: ...

    def add_matrix(self, answers: Answers) -> None: ...

    def reference_form(self, path: Path) -> Form: ...

    def add_reference(self, path: Path, answers: Answers) -> None: ...
