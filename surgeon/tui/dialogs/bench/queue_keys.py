"""What the keys of the bench do to the queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from textual.widgets import Static

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.session.queue import FAILED, RUNNING, WAITING, Entry
from surgeon.trials.journal import Trial
from surgeon.tui.dialogs.base import Choices, Dialog, text_of
from surgeon.tui.dialogs.bench.host import Bench
from surgeon.tui.dialogs.bench.queue_lines import entry_line, queue_head
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.drawing.spans import Line, clean

# What the screen is to do once the bench is closed; `running`: show what runs.
Wish = tuple[Literal["restore", "evaluate", "map"], Trial] | tuple[Literal["running"], None]
QUEUE_KEYS = (
    ("Enter", "run next, show, again"), ("J K", "move"), ("x", "remove"), ("D", "remove what is done"), ("P", "pause"),
    ("a", "matrix"), ("r", "reference"), ("Tab", "trials"), ("Esc", "close"),
)  # fmt: skip


class QueueKeys(Dialog[Any]):
    """The upper half of the bench."""

    bench: Bench
    ask: Callable[..., None]
    note: Callable[..., None]
    about: Callable[[], None]

    @property
    def room(self) -> int:
        """Cells of a line."""
        return max(40, self.app.size.width - 6)

    @property
    def entry(self) -> Entry | None:
        """The one under the queue's cursor."""
        choices = self.query_one("#queue", Choices)
        key = choices.highlighted_id if choices.option_count else None
        return self.bench.queue.entry(key) if key is not None else None

    def show_queue(self, at: str | None = None) -> None:
        """After the queue, or how far it is, has changed."""
        choices = self.query_one("#queue", Choices)
        queue, theme, width = self.bench.queue, self.app.current_theme, self.room - 2
        rows = [
            (entry.id, text_of([entry_line(entry, place, self.bench.queue_status, width)], theme))
            for place, entry in enumerate(queue.entries, start=1)
        ]
        choices.fill(rows, at)
        if at is not None:
            choices.highlighted = next((place for place, row in enumerate(rows) if row[0] == at), choices.highlighted)
        choices.display = bool(rows)
        if not rows and choices.has_focus:
            self.set_focus(self.query_one("#trials", Choices))
        self.query_one("#queue-head", Static).update(self.text([queue_head(queue)]))
        self.about()

    def show_running(self) -> None:
        """How far the running entry is."""
        choices, theme = self.query_one("#queue", Choices), self.app.current_theme
        for place, entry in enumerate(self.bench.queue.entries, start=1):
            if entry.state == RUNNING and any(option.id == entry.id for option in choices.options):
                line = entry_line(entry, place, self.bench.queue_status, self.room - 2)
                choices.replace_option_prompt(entry.id, text_of([line], theme))

    def change_queue(self, change: Callable[[], object], at: str | None = None) -> None:
        """Change it and let it go on; what could not be kept is reported."""
        try:
            change()
        except SurgeonError as error:
            self.note(str(error), "pruned")
        self.bench.begin_next()
        self.show_queue(at)

    def take_entry(self) -> None:
        """The running one is shown; one that waits is the next; one that failed waits again."""
        entry, queue = self.entry, self.bench.queue
        if entry is None:
            return
        if entry.state == RUNNING:
            self.dismiss(("running", None))
        elif entry.state in (WAITING, FAILED):
            first = next((place for place, other in enumerate(queue.entries) if other.state == WAITING), None)
            place = queue.entries.index(entry)

            def next_one() -> None:
                if first is not None and first < place:
                    queue.move(entry.id, first - place)
                queue.mark(entry.id, WAITING)

            self.change_queue(next_one, entry.id)

    def remove_entry(self) -> None:
        entry = self.entry
        if entry is not None and entry.state == RUNNING:
            self.app.ask_to_stop()
        elif entry is not None:
            self.change_queue(lambda: self.bench.queue.remove(entry.id))

    def action_shift(self, by: int) -> None:
        entry = self.entry
        if entry is not None:
            self.change_queue(lambda: self.bench.queue.move(entry.id, by), entry.id)

    def action_pause(self) -> None:
        queue = self.bench.queue
        self.change_queue(lambda: queue.pause(not queue.paused))

    def action_remove_done(self) -> None:
        self.change_queue(self.bench.queue.remove_ended)

    def action_matrix(self) -> None:
        def answered(answers: dict[str, str] | None) -> None:
            if answers is not None:
                self.bench.add_matrix(answers)
                self.show_queue()

        self.ask(self.bench.matrix_form(), answered)

    def action_reference(self) -> None:
        """A GGUF on disk, measured as a row beside ours."""

        def check(text: str) -> tuple[bool, Line]:
            path = Path(text).expanduser()
            if not path.is_file():
                return False, [("is a folder: name a file in it" if path.is_dir() else "no such file", "muted")]
            return True, [(clean(figures.size(path.stat().st_size)), "accent")]

        def named(text: str | None) -> None:
            if text is None:
                return
            path = Path(text).expanduser().absolute()

            def answered(answers: dict[str, str] | None) -> None:
                if answers is not None:
                    self.bench.add_reference(path, answers)
                    self.show_queue()

            self.ask(self.bench.reference_form(path), answered)

        folder = f"{self.bench.session.model.file.path.absolute().parent}/"
        hint = "a GGUF of the same model · Tab complete · ↑ earlier"
        self.ask(Prompt("measure a file beside ours", check, value=folder, hint=hint, endings=(".gguf",)), named)
