"""Work put off until its turn: kept in a file at every change, so that a night's queue survives a restart.

An entry holds what was answered in a form and the plan as a recipe, so that the plan on the table may change meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.folders import make_private
from surgeon.json_text import json_text, read_json
from surgeon.whole_files import write_whole
from surgeon.write_guard import Permit

KINDS = {
    "write": "write",
    "evaluate": "measure",
    "collect": "collect an imatrix",
    "sensitivities": "measure sensitivities",
    "scan": "prune-scan",
    "heal": "heal",
    "card": "card",
}
"""Kind of work -> what it is called."""

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
_MOST = 1000  # entries of one queue
_LARGEST = 64 << 20  # bytes of its file


@dataclass(frozen=True)
class Entry:
    """kind: of KINDS; title: what of; answers: of the kind's form; recipe: TOML of the plan, '' where none is needed;
    note: what came of it."""

    kind: str
    title: str
    answers: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    state: str = WAITING
    note: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(6))


class Queue:
    """The entries of one model in order; `path` is where they are kept (None: nowhere), `inputs` what that must not be.

    Every change raises SurgeonError where it could not be kept; it holds for the running program all the same.
    """

    def __init__(self, path: Path | None = None, inputs: tuple[Path, ...] = ()) -> None:
        self.path, self.inputs = path, inputs
        self.entries: tuple[Entry, ...] = ()
        self.paused = False

    @classmethod
    def kept(cls, path: Path, inputs: tuple[Path, ...] = ()) -> Queue:
        """What the last session left: what ran then waits again, and nothing starts before it is asked for."""
        queue = cls(path, inputs)
        try:
            if path.stat().st_size <= _LARGEST:
                queue.entries = _entries(read_json(path.read_bytes()))
        except (OSError, ValueError):
            return queue
        queue.paused = bool(queue.waiting)
        return queue

    @property
    def waiting(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.state == WAITING)

    @property
    def next(self) -> Entry | None:
        """What is to be begun now; None where nothing is, or where it is paused or something of it runs."""
        busy = any(entry.state == RUNNING for entry in self.entries)
        return None if self.paused or busy else next(iter(self.waiting), None)

    def entry(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.id == name), None)

    def add(self, *entries: Entry) -> None:
        if len(self.entries) + len(entries) > _MOST:
            raise SurgeonError(f"the queue holds {_MOST} entries at most: remove those that are done (D)")
        self._change(lambda: (*self.entries, *entries))

    def remove(self, name: str) -> None:
        self._change(lambda: tuple(entry for entry in self.entries if entry.id != name))

    def remove_ended(self) -> int:
        """Take out what is done; what failed stays. Returns how many."""
        left = tuple(entry for entry in self.entries if entry.state != DONE)
        gone = len(self.entries) - len(left)
        self._change(lambda: left)
        return gone

    def move(self, name: str, by: int) -> None:
        """An entry so many places down."""
        entries = list(self.entries)
        at = next((place for place, entry in enumerate(entries) if entry.id == name), None)
        if at is not None:
            entries.insert(max(0, at + by), entries.pop(at))
            self._change(lambda: tuple(entries))

    def mark(self, name: str, state: str, note: str = "") -> None:
        """What became of an entry."""
        self._change(
            lambda: tuple(
                replace(entry, state=state, note=note) if entry.id == name else entry for entry in self.entries
            )
        )

    def pause(self, paused: bool) -> None:
        """paused: nothing new is begun; what runs goes on."""
        self.paused = paused

    def _change(self, made: Callable[[], tuple[Entry, ...]]) -> None:
        entries = made()
        if entries == self.entries:
            return
        self.entries = entries
        if self.path is not None:
            try:
                make_private(self.path.parent)
                if entries:
                    text = json_text([asdict(entry) for entry in entries])
                    write_whole(self.path, text, permit=Permit(self.inputs, replace=True))
                else:
                    self.path.unlink(missing_ok=True)
            except OSError as error:
                raise SurgeonError(f"{self.path}: the queue cannot be kept: {error.strerror}") from error


def _entries(found: object) -> tuple[Entry, ...]:
    """What of a queue's file makes sense."""
    rows = found[:_MOST] if isinstance(found, list) else []
    return tuple(entry for row in rows if isinstance(row, dict) and (entry := _entry(row)) is not None)


def _entry(row: dict[str, object]) -> Entry | None:
    answers = row.get("answers")
    texts = {name: row.get(name) for name in ("kind", "title", "recipe", "state", "note", "id")}
    if not isinstance(answers, dict) or not all(isinstance(text, str) for text in texts.values()):
        return None
    if texts["kind"] not in KINDS or texts["state"] not in (WAITING, RUNNING, DONE, FAILED):
        return None
    state = WAITING if texts["state"] == RUNNING else str(texts["state"])
    words = {str(key): str(value) for key, value in answers.items()}
    kind, title, recipe, note, name = (str(texts[key]) for key in ("kind", "title", "recipe", "note", "id"))
    return Entry(kind, title, words, recipe, state, note, name)
