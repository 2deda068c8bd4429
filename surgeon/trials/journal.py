"""The trials of a model: what was made of it and its measurements, kept over restarts.

One file of JSON lines per source model in the user's state directory. Lines are only ever added (`trial`, `measured`,
`best`, `forgotten`), under a lock and synced, so that a crash costs at most the line it cut off.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surgeon.errors import SurgeonError
from surgeon.folders import make_private, state_folder
from surgeon.gguf.identity import model_identity


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


class Journal:
    """The trials of one source model, in the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_model(cls, source: Path, folder: Path | None = None) -> Journal:
        """The journal of a source model, wherever that lies now and whatever it is called."""
        return cls((folder or state_folder()) / "journal" / f"{model_identity(source)}.jsonl")

    def trials(self) -> list[Trial]:
        """All trials, oldest first. A line cut off by a crash is passed over."""
        found: dict[str, Trial] = {}
        for event in self._events():
            _apply(found, event)
        return list(found.values())

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
        if not any(trial.id == trial_id for trial in self.trials()):
            raise SurgeonError(f"{self.path}: has no trial {trial_id}")

    def _events(self) -> Iterator[dict[str, Any]]:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise SurgeonError(f"{self.path}: cannot be read: {error.strerror}") from error
        for line in raw.split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # empty, or cut off
            if isinstance(event, dict):
                yield event

    def _append(self, event: dict[str, Any]) -> None:
        import fcntl

        line = json.dumps(event, ensure_ascii=False).encode()
        try:
            make_private(self.path.parent)
            with self.path.open("ab") as file:
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


def _plain(value: Trial | Measured) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


def _apply(found: dict[str, Trial], event: dict[str, Any]) -> None:
    kind, name = event.get("event"), event.get("id")
    if kind == "trial" and name is not None:
        fields = {key: value for key, value in event.items() if key in Trial.__dataclass_fields__}
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
    elif kind == "best":
        for key, trial in found.items():
            found[key] = replace(trial, best=key == name)
    elif kind == "forgotten":
        del found[name]


def _measured(fields: dict[str, Any]) -> Measured:
    tasks = {name: (score, error) for name, (score, error) in fields.get("tasks", {}).items()}
    speed = {name: Speed(**values) for name, values in fields.get("speed", {}).items()}
    return Measured(fields.get("figures", {}), fields.get("conditions", {}), tasks, speed)
