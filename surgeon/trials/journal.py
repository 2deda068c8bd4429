"""The trials of a model: what was made of it and its measurements, kept over restarts.

One file of JSON lines per source model in the user's state directory. Lines are only ever added (`trial`, `measured`,
`best`, `forgotten`), under a lock and synced, so that a crash costs at most the line it cut off.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surgeon.errors import SurgeonError
from surgeon.folders import make_private, state_folder
from surgeon.gguf.file import shards_of
from surgeon.gguf.identity import before_places, model_identity
from surgeon.json_text import json_text, read_json
from surgeon.write_guard import Kind, Permit, kind_of, may_write


@dataclass(frozen=True)
class Speed:
    """One test of `surgeon bench`: tokens per second."""

    mean: float
    deviation: float
    best: float


@dataclass(frozen=True)
class Measured:
    """What one evaluation adds to a trial.

    figures: by key of figure_table.TABLE; conditions: what they were measured on; tasks: name -> (score, error), per
    cent; speed: llama-bench's name -> Speed.
    """

    figures: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)
    speed: dict[str, Speed] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One plan carried out (or only evaluated). size: bytes of the output; recipe: TOML that restores the plan."""

    id: str
    when: str
    label: str
    size: int
    source_size: int
    bpw: float | None = None
    recipe: str = ""
    output: str = ""
    output_identity: str = ""
    measured: Measured = field(default_factory=Measured)
    best: bool = False

    def figure(self, name: str) -> float | None:
        """A figure by name; `size`, `bpw`, the mean of `tasks`, a task, a speed's mean; None if not measured."""
        if name in ("size", "bpw"):
            found: float | None = getattr(self, name)
            return found
        if name == "tasks":
            scores = [score for score, _ in self.measured.tasks.values()]
            return sum(scores) / len(scores) if scores else None
        if name in self.measured.tasks:
            return self.measured.tasks[name][0]
        if name in self.measured.speed:
            return self.measured.speed[name].mean
        return self.measured.figures.get(name)


_FIELDS: dict[str, Any] = {
    **dict.fromkeys("id when label recipe output output_identity".split(), str),
    **dict.fromkeys(("size", "source_size"), int),
    "bpw": int | float | None,
    "best": bool,
}


class Journal:
    """The trials of one source model, in the file `path`; `inputs` are files it must not be.

    earlier: the file of an earlier version; read before `path`, and left as it is.
    """

    def __init__(self, path: Path, inputs: tuple[Path, ...] = (), earlier: Path | None = None) -> None:
        self.path, self.inputs, self.earlier = path, inputs, earlier

    @classmethod
    def of_model(cls, source: Path, folder: Path | None = None) -> Journal:
        """The journal of a source model, wherever that lies now and whatever it is called."""
        journals, identity = (folder or state_folder()) / "journal", model_identity(source)
        earlier = journals / f"{before_places(identity)}.jsonl"
        return cls(journals / f"{identity}.jsonl", shards_of(source), earlier)

    @property
    def files(self) -> tuple[Path, ...]:
        """What its trials are read from, oldest first."""
        return (self.path,) if self.earlier is None else (self.earlier, self.path)

    def trials(self) -> list[Trial]:
        """All trials, oldest first. A line that is cut off, or holds what none of ours does, is passed over alone."""
        found: dict[str, Trial] = {}
        best = None
        for event in self._events():
            try:
                _apply(found, event)
                best = event["id"] if event.get("event") == "best" and event["id"] in found else best
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                continue
        # Marked once, at the end: to unmark all others at every mark takes the square of their number.
        return [replace(trial, best=name == best) if best else trial for name, trial in found.items()]

    def add(self, trial: Trial) -> Trial:
        """Keep a new trial."""
        self._append({"event": "trial", **_plain(trial)})
        return trial

    def add_measured(self, trial_id: str, measured: Measured) -> None:
        """Add figures to a trial; the same figure measured again replaces the old one."""
        self._append({"event": "measured", "id": trial_id, "measured": _plain(measured)})

    def mark_best(self, trial_id: str) -> None:
        """Make this trial the best, and no other."""
        self._require(trial_id)
        self._append({"event": "best", "id": trial_id})

    def forget(self, trial_id: str) -> None:
        """Leave a trial out from now on."""
        self._require(trial_id)
        self._append({"event": "forgotten", "id": trial_id})

    def _require(self, trial_id: str) -> None:
        """Raises SurgeonError where there is no such trial. Only the lines that name it are read."""
        found: dict[str, Trial] = {}
        needle = json_text(trial_id).encode()
        raw = self._raw()
        at = raw.find(needle)
        while at >= 0:  # only the lines that name it: to split ten thousand takes as long as to read them
            start, end = raw.rfind(b"\n", 0, at) + 1, raw.find(b"\n", at)
            line = raw[start : end if end >= 0 else len(raw)]
            at = raw.find(needle, start + len(line))
            if line:
                with contextlib.suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    _apply(found, _event(line))
        if trial_id not in found:
            raise SurgeonError(f"{self.path}: has no trial {trial_id}")

    def _events(self) -> Iterator[dict[str, Any]]:
        for line in self._raw().split(b"\n"):
            with contextlib.suppress(ValueError):  # empty, or cut off
                yield _event(line)

    def _raw(self) -> bytes:
        return b"\n".join(map(_bytes_of, self.files))

    def _append(self, event: dict[str, Any]) -> None:
        import fcntl

        line = json_text(event).encode()
        try:
            make_private(self.path.parent)
            # A crash may leave zeros at the end, and then it is not text; it is only added to.
            damaged = self.path.is_file() and kind_of(self.path) is Kind.UNKNOWN
            kind = Kind.UNKNOWN if damaged else Kind.TEXT
            target = may_write(self.path, kind, Permit(self.inputs, replace=True))
            with target.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # A newline first: whatever was cut off before must not take this line with it.
                file.write(b"\n" + line + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SurgeonError(f"{self.path}: the journal cannot be written: {error.strerror}") from error


def new_trial(label: str, size: int, source_size: int, **rest: Any) -> Trial:
    """A trial of now, with an identity of its own."""
    now = datetime.now(UTC)
    return Trial(
        f"{now:%y%m%d%H%M%S}-{secrets.token_hex(4)}",
        now.isoformat(timespec="seconds"),
        label,
        size,
        source_size,
        **rest,
    )


def _bytes_of(path: Path) -> bytes:
    """Nothing where there is no such file. Raises SurgeonError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SurgeonError(f"{path}: cannot be read: {error.strerror}") from error


def _plain(value: Trial | Measured) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


def _event(line: bytes) -> dict[str, Any]:
    """The event of a line. Raises ValueError."""
    event = read_json(line)
    if not isinstance(event, dict) or not isinstance(event.get("id"), str):
        raise ValueError("not an event")
    return event


def _apply(found: dict[str, Trial], event: dict[str, Any]) -> None:
    """Let an event happen. Raises what wrong types in it lead to, and then nothing has happened."""
    kind, name = event.get("event"), event["id"]
    if kind == "trial":
        fields = {key: _checked(key, event[key]) for key in _FIELDS if key in event}
        found[name] = Trial(**{**fields, "measured": _measured(event.get("measured", {}))})
    elif name not in found:
        return
    elif kind == "measured":
        old, new = found[name].measured, _measured(event["measured"])
        # Figures measured on another text stand for themselves; a row must not mix the two.
        alike = not new.conditions or new.conditions == old.conditions
        both = Measured(
            old.figures | new.figures if alike else new.figures,
            new.conditions or old.conditions,
            old.tasks | new.tasks,
            old.speed | new.speed,
        )
        found[name] = replace(found[name], measured=both)
    elif kind == "forgotten":
        del found[name]


def _checked(key: str, value: Any) -> Any:
    """The value of a field of Trial. Raises TypeError."""
    if not isinstance(value, _FIELDS[key]) or (isinstance(value, bool) and key != "best"):
        raise TypeError(f"{key} is {value!r:.40}")
    return value


def _measured(fields: dict[str, Any]) -> Measured:
    """Figures that are none (null) are left out. Raises TypeError or ValueError for what is not a figure."""
    tasks = {name: (_number(score), _number(error)) for name, (score, error) in fields.get("tasks", {}).items()}
    speed = {
        name: Speed(*(_number(values[key]) for key in ("mean", "deviation", "best")))
        for name, values in fields.get("speed", {}).items()
    }
    figures = {name: _number(value) for name, value in fields.get("figures", {}).items() if value is not None}
    return Measured(figures, dict(fields.get("conditions", {})), tasks, speed)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    return float(value)  # OverflowError for an integer beyond all measure
