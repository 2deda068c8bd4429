"""How fast runs of a model went on this machine: what the next one is reckoned from.

One file of JSON per model in the state folder: setup (machine, threads, llama.cpp) -> kind of work -> tokens of a chunk
-> amount per second. The newest run counts.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import Engine, Message, Started, Step
from surgeon.errors import SurgeonError
from surgeon.folders import state_folder
from surgeon.gguf.identity import model_identity
from surgeon.json_text import json_text, read_json
from surgeon.machine import available_cores
from surgeon.measure.kept_figures import alone_in
from surgeon.whole_files import write_whole
from surgeon.write_guard import REPLACE

if TYPE_CHECKING:
    from surgeon.resolve.resolution import Resolution

# Kinds of work. The first is what a run takes before its first token: process, model, text; counted in runs.
START = "start"
PERPLEXITY, BASE, DIVERGENCE, PROBE = "perplexity", "base", "divergence", "probe"  # in tokens, as those below
SCAN, HEALED_SCAN, IMATRIX, MOMENTS = "scan", "healed scan", "imatrix", "moments"
TASK, BENCH = "task", "bench"  # in tasks and in runs; TASK with the task's name behind it
ERRORS, ENCODE, COPY, HEAL = "errors", "encode", "copy", "heal"  # weights × types, weights, bytes, multiplications × 2
_SHORTEST = 0.5  # seconds; in less a run shows what beginning costs, not how fast it goes


@dataclass(frozen=True)
class Stage:
    """So much work of a kind. n_ctx: tokens of a chunk, 0 where there are none; amount: NaN where it is not known."""

    kind: str
    amount: float = 1
    n_ctx: int = 0


def encoding(made: Resolution) -> Stage:
    """Making what a plan converts; the whole file where it converts nothing."""
    weights = sum(op.n_elements for op in made.kept if op.action == "convert")
    if not weights:
        return Stage(COPY, made.total_bytes)
    return Stage(f"{ENCODE} {made.plan.file_type}{' feedback' if made.with_feedback else ''}", weights)


@dataclass(frozen=True)
class Speeds:
    """Of one model, run in one way. path: None where nothing is known or kept."""

    path: Path | None = None
    setup: str = ""

    @classmethod
    def of(cls, model: Path, engine: Engine) -> Speeds:
        """What is known of this model with this engine; nothing where there is no state folder."""
        try:
            path = state_folder() / "speeds" / f"{model_identity(model)}.json"
        except SurgeonError:
            return cls()
        try:
            library = find_libraries(engine.library).label
        except SurgeonError:  # writing needs none
            library = "no llama.cpp"
        threads = engine.threads if engine.threads > 0 else available_cores()
        return cls(path, f"{platform.node()}, {threads} threads, {engine.n_gpu_layers} layers on a GPU, {library}")

    def seconds(self, stages: Sequence[Stage]) -> float | None:
        """For all stages one after the other; None where a kind of work has not been done before."""
        found = self._read().get(self.setup)
        known = found if isinstance(found, dict) else {}
        total = 0.0
        for stage in stages:
            speeds = _usable(known.get(stage.kind))
            if not speeds or math.isnan(stage.amount):
                return None
            # A longer context is slower: that of chunks alike counts.
            nearest = min(speeds, key=lambda n_ctx: abs(math.log((n_ctx + 1) / (stage.n_ctx + 1))))
            total += stage.amount / speeds[nearest]
        return total

    def keep(self, stage: Stage, seconds: float) -> None:
        """Remember that so much took so long."""
        if self.path is None or not stage.amount > 0 or seconds <= 0:
            return
        # The run itself went well; without a place to keep this the next one is reckoned from less.
        with suppress(SurgeonError, OSError), alone_in(self.path.parent):
            known = self._read()
            ours = known.get(self.setup)
            ours = ours if isinstance(ours, dict) else {}
            ours[stage.kind] = {**_usable(ours.get(stage.kind)), stage.n_ctx: stage.amount / seconds}
            write_whole(self.path, json_text({**known, self.setup: ours}), permit=REPLACE)

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            found = read_json(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _usable(speeds: Any) -> dict[int, float]:
    """Tokens of a chunk -> speed, of those entries that are such."""
    if not isinstance(speeds, dict):
        return {}
    return {
        int(length): float(speed)
        for length, speed in speeds.items()
        if length.isascii() and length.isdigit() and len(length) < 10 and isinstance(speed, int | float) and speed > 0
    }


def timed(
    messages: Iterable[Message], speeds: Speeds, kind: str, n_ctx: int = 0, *, done: int = 0
) -> Iterator[Message]:
    """Pass a run's messages on, and keep how fast it was, also of one that is stopped.

    n_ctx: tokens of a Step, 0 where one is a task or a run; done: Steps that an earlier run has done.
    """
    began = begun = last = time.monotonic()
    steps = done
    try:
        for message in messages:
            if isinstance(message, Started):
                begun = last = time.monotonic()
                speeds.keep(Stage(START), begun - began)
            elif isinstance(message, Step):
                last, steps = time.monotonic(), message.done
            yield message
    finally:
        if last - begun >= _SHORTEST:
            speeds.keep(Stage(kind, (steps - done) * max(1, n_ctx), n_ctx), last - begun)
