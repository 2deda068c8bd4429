"""A list of candidates whose sizes, and errors, come in from a thread while it is already open."""

from __future__ import annotations

import string
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message

from surgeon.errors import SurgeonError
from surgeon.session.candidates import Candidate
from surgeon.tui.dialogs.base import ChoiceDialog, Choices, text_of
from surgeon.tui.drawing.spans import Line

TYPING_SECONDS = 1.5  # between two letters of one name


class Came(Message):
    """What a thread found: a Candidate, or (type, error), or a line that says why nothing comes."""

    def __init__(self, generation: int, item: object) -> None:
        super().__init__()
        self.generation, self.item = generation, item


class CandidateDialog(ChoiceDialog):
    """Holds the candidates by name; a subclass says how a line looks. Typing a name goes to it."""

    # With priority, as LIST_KEYS are: `q6` and Enter are dealt with in the order typed. No name has a j, g or h.
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(letter, f"go_to('{letter.lower()}')", show=False, priority=True)
          for letter in string.ascii_letters + string.digits if letter.lower() not in "jgh"),
        Binding("underscore", "go_to('_')", show=False, priority=True),
    ]  # fmt: skip
    names: tuple[str, ...] = ()
    letter_keys: ClassVar[dict[str, str]] = {"k": "list('cursor_up')"}
    """What letters do that begin no name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Candidate] = {}
        self.generation = 0
        self._stop = threading.Event()
        self._typed, self._typed_at = "", 0.0

    def line(self, name: str) -> Line:
        raise NotImplementedError

    def enabled(self, name: str) -> bool:
        candidate = self.found.get(name)
        return candidate is None or not candidate.note

    async def action_go_to(self, letter: str) -> None:
        """To the first name that begins with what was typed without a pause, or with this letter."""
        now = time.monotonic()
        begun = self._typed if now - self._typed_at < TYPING_SECONDS else ""
        for typed in dict.fromkeys((begun + letter, letter)):
            name = next((name for name in self.names if name.lower().startswith(typed) and self.enabled(name)), None)
            if name is not None:
                self._typed, self._typed_at = typed, now
                choices = self.query_one(Choices)
                choices.highlighted = choices.get_option_index(name)
                return
        self._typed = ""
        if letter in self.letter_keys:
            await self.run_action(self.letter_keys[letter])

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

    def entries(self) -> list[tuple[str, Text, bool]]:
        dark = self.app.current_theme.dark
        return [(name, text_of([self.line(name)], dark), self.enabled(name)) for name in self.names]

    def show_line(self, name: str) -> None:
        choices = self.query_one(Choices)
        choices.replace_option_prompt(name, text_of([self.line(name)], self.app.current_theme.dark))
        if not self.enabled(name):
            choices.disable_option(name)
