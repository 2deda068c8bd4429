"""Running the engine in tests: on the bundled model, one thread, a few short chunks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.engine.client import EngineRun
from surgeon.engine.protocol import Engine, Finished, Job, Message

TEXT = Path(__file__).parents[1] / "data" / "lighthouse.txt"
ONE_THREAD = Engine(threads=1)


def run(job: Job, engine: Engine = ONE_THREAD) -> list[Message]:
    """All messages of a job."""
    return list(EngineRun(engine, job).messages())


def figures(job: Job, engine: Engine = ONE_THREAD) -> dict[str, Any]:
    """The final figures of a job."""
    last = run(job, engine)[-1]
    assert isinstance(last, Finished)
    return last.values


def at_each(kind: type[Message], messages: Iterable[object], act: Callable[[], object]) -> None:
    """Read all messages and act whenever one of this kind arrives."""
    for message in messages:
        if isinstance(message, kind):
            act()


@dataclass(frozen=True)
class Base:
    """Saved log-probabilities of the bundled model over the test's text: 4 chunks of 64 tokens."""

    path: Path
    values: dict[str, Any]


def multiple_choice_file(path: Path, tasks: list[tuple[str, list[str], int]]) -> Path:
    """A task file as llama-perplexity reads it. tasks: question, answers, the right one's index."""

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    records = []
    for question, answers, right in tasks:
        labels = struct.pack(f"<{len(answers)}i", *(int(index == right) for index in range(len(answers))))
        choice = struct.pack("<I", len(answers)) + b"".join(map(text, answers)) + labels
        records.append(text(question) + choice + struct.pack("<I", 0))
    start = 4 + 4 * len(records)
    positions = [start + sum(map(len, records[:index])) for index in range(len(records))]
    path.write_bytes(struct.pack(f"<I{len(records)}I", len(records), *positions) + b"".join(records))
    return path
