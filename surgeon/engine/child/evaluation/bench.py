"""Tokens per second as llama-bench measures them: prompt processing (pp), generation (tg), and one after the other.

Random tokens, no sampling; one warm-up; each repetition starts with an empty cache, or
with `depth` tokens in it (not timed).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np

from surgeon.engine.child.llama.model import Context, ContextSize, LlamaModel, Tokens, opened
from surgeon.engine.protocol import BenchJob, Finished, Message, Started, Step


def label(prompt: int, generated: int, depth: int = 0) -> str:
    """llama-bench's name of a test: pp512, tg128, pp512+tg128, with "@ d4096" for a filled cache."""
    parts = [f"pp{prompt}"] * (prompt > 0) + [f"tg{generated}"] * (generated > 0)
    return "+".join(parts) + (f" @ d{depth}" if depth else "")


def measure(model: LlamaModel, job: BenchJob, threads: int) -> Iterator[Message]:
    """Started, a Step per repetition (`tokens_per_second`), Finished with `tests`: mean, deviation, best of each."""
    yield Started(0, len(job.tests) * job.repetitions, 0)
    results = []
    done = 0
    for prompt, generated in job.tests:
        size = ContextSize(prompt + generated + job.depth, 1, job.n_batch, job.n_ubatch)
        speeds = []
        with opened(model, size, threads) as context:
            bench = _Bench(context, prompt, generated, job.depth)
            bench.warm_up()
            for _ in range(job.repetitions):
                speeds.append(bench.repetition())
                done += 1
                yield Step(done, len(job.tests) * job.repetitions, {"tokens_per_second": speeds[-1]})
        results.append(_summary(label(prompt, generated, job.depth), speeds))
    yield Finished({"tests": results, "threads": threads, "n_batch": job.n_batch, "n_ubatch": job.n_ubatch})


def _summary(name: str, speeds: list[float]) -> dict[str, object]:
    deviation = statistics.stdev(speeds) if len(speeds) > 1 else 0.0
    mean = statistics.fmean(speeds)
    return {"test": name, "mean": mean, "deviation": deviation, "best": max(speeds), "samples": speeds}


class _Bench:
    def __init__(self, context: Context, prompt: int, generated: int, depth: int) -> None:
        self._context, self._prompt, self._generated, self._depth = context, prompt, generated, depth
        self._random = np.random.default_rng(1)

    def warm_up(self) -> None:
        """The whole prompt once, and one generated token."""
        self._context.clear()
        if self._prompt:
            self._feed(self._tokens(self._prompt), 0)
        if self._generated:
            self._feed(self._tokens(1), self._prompt)

    def repetition(self) -> float:
        """Tokens per second of one run."""
        self._context.clear()
        if self._depth:
            self._feed(self._tokens(self._depth), 0)
        at = self._depth
        begin = time.perf_counter()
        if self._prompt:
            self._feed(self._tokens(self._prompt), at)
            at += self._prompt
        for step in range(self._generated):
            self._feed(self._tokens(1), at + step)
        return (self._prompt + self._generated) / (time.perf_counter() - begin)

    def _tokens(self, count: int) -> Tokens:
        tokens = self._random.integers(0, self._context.model.n_vocab, count, dtype=np.int32)
        if self._context.model.bos is not None:
            tokens[0] = self._context.model.bos
        return tokens

    def _feed(self, tokens: Tokens, start: int) -> None:
        step = self._context.size.n_batch
        for begin in range(0, len(tokens), step):
            piece = tokens[begin : begin + step]
            positions = np.arange(start + begin, start + begin + len(piece), dtype=np.int32)
            outputs = np.zeros(len(piece), np.bool_)
            outputs[-1] = True
            self._context.decode(piece, positions, np.zeros(len(piece), np.int32), outputs)
            self._context.synchronize()
