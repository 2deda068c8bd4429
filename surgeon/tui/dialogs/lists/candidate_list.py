"""A list of candidates whose sizes, and errors, come in from a thread while it is already open."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator

from rich.text import Text
from textual.message import Message

from surgeon.errors import SurgeonError
from surgeon.session.candidates import Candidate
from surgeon.tui.dialogs.base import ChoiceDialog, Choices, text_of
from surgeon.tui.dialogs.type_ahead import TypeAhead
from surgeon.tui.drawing.spans import Line


class Came(Message):
    """What a thread found: a Candidate, or (type, error), or a line that says why nothing comes."""

    def __init__(self, generation: int, item: object) -> None:
        super().__init__()
        self.generation, self.item = generation, item


class CandidateDialog(ChoiceDialog):
    """Holds the candidates by name; a subclass says how a line looks."""

    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Candidate] = {}
        self.generation = 0
        self._stop = threading.Event()
        self.type_ahead = TypeAhead([(name, (name,)) for name in self.names])

    @abstractmethod
    def line(self, name: str) -> Line:
        """How a line looks."""

    def refused(self, key: str) -> str:
        candidate = self.found.get(key)
        return f"{key}: {candidate.note}" if candidate is not None and candidate.note else ""

    def begin(self, source: Callable[[threading.Event], Iterator[object]]) -> None:
        """Run `source` in a thread of its own generation; what an earlier one still sends is ignored."""
        self.generation += 1
        self._stop.set()
        self._stop = threading.Event()
        arguments = (source, self._stop, self.generation)
        # A daemon, not textual's worker: a kernel being compiled cannot be interrupted, and quitting must not wait.
        threading.Thread(target=self._run, args=arguments, name="candidates", daemon=True).start()

    def _run(
        self, source: Callable[[threading.Event], Iterator[object]], stop: threading.Event, generation: int
    ) -> None:
        try:
            for item in source(stop):
                if stop.is_set():
                    return
                self.post_message(Came(generation, item))
        except SurgeonError as error:
            self.post_message(Came(generation, str(error)))
        except Exception as error:  # a defect costs the figures, not the session
            self.post_message(Came(generation, f"{type(error).__name__}: {error}"))

    def on_unmount(self) -> None:
        self._stop.set()

    def entries(self) -> list[tuple[str, Text]]:
        theme = self.app.current_theme
        return [(name, text_of([self.line(name)], theme)) for name in self.names]

    def show_line(self, name: str) -> None:
        choices = self.query_one(Choices)
        choices.replace_option_prompt(name, text_of([self.line(name)], self.app.current_theme))
