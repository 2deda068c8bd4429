"""Speed of every kernel beside ggml's own, in one run, as a Markdown table.

    python tests/benchmarks/bench_kernels.py [TYPE ...] [--threads] [--rows N] [--columns N] [--rounds N]

Student-t weights (4 degrees of freedom, scale 0.02), one thread, median of the thread's processor time; the two sides
take turns, so that another program's work falls on both alike. Mw/s are millions of weights per second. ggml's side is
`ggml_quantize_chunk` and `to_float` of the xllamacpp package.

With --threads also how many times the work of one thread two do, which draw slabs of it from a queue as the writer's
threads do: by their processor time, which is what two processors of one's own would give, and by the clock, where
waiting for Python's lock or for a processor that another program holds counts too; and ggml's by the clock.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
from numpy.typing import NDArray

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT / "tests" / "kernels")]

from oracle import BYTE_EXACT, Oracle, oracle  # noqa: E402

import surgeon_kernels as kernels  # noqa: E402
from surgeon_kernels.formats import FORMATS, USES_CODEBOOK  # noqa: E402

Floats = NDArray[np.float32]
_ROUND_SECONDS = 0.02  # of our side at least: long beside filling the caches anew after ggml's turn
_THREAD_SECONDS = 0.3  # long beside the start of a thread and its turns at Python's lock
_LEAST_SLABS = 16  # at the end one thread may wait for the other's last


@dataclass
class Row:
    """Mweights/s of one type, ours and ggml's; `threads` as `_two_threads` gives it."""

    name: str
    how: str
    ours: float
    theirs: float
    threads: tuple[float, float, float] | None

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


@dataclass
class Side:
    """One side's work: over all rows, and over either half of them."""

    whole: Callable[[], object]
    halves: tuple[Callable[[], object], Callable[[], object]]


def _seconds(task: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    task()
    return clock() - started


def _measure(name: str, how: str, sides: tuple[Side, Side], weights: int, options: argparse.Namespace) -> Row:
    """Median speeds by processor time, ours and ggml's in turns, and what two threads give."""
    ours, theirs = sides
    ours.whole()
    times = math.ceil(_ROUND_SECONDS / _seconds(ours.whole, time.thread_time))
    tasks = [_repeat(side.whole, times) for side in (ours, theirs)]
    taken = [[_seconds(task, time.thread_time) / times for task in tasks] for _ in range(options.rounds)]
    our_time, their_time = (median(side) for side in zip(*taken, strict=True))
    threads = _two_threads(sides, (our_time, their_time), options.rounds) if options.threads else None
    return Row(name, how, weights / our_time / 1e6, weights / their_time / 1e6, threads)


def _two_threads(sides: tuple[Side, Side], seconds: tuple[float, float], rounds: int) -> tuple[float, float, float]:
    """How many times the work of one thread two do: ours by processor time and by the clock, ggml's by the clock.

    Medians. `seconds`: what either side's work takes.
    """
    slabs = [
        side.halves * max(_LEAST_SLABS // 2, math.ceil(_THREAD_SECONDS / one))
        for side, one in zip(sides, seconds, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        found = [(*_speed_up(pool, slabs[0]), _speed_up(pool, slabs[1])[1]) for _ in range(rounds)]
    by_processor, by_clock, theirs_by_clock = (median(figures) for figures in zip(*found, strict=True))
    return by_processor, by_clock, theirs_by_clock


def _speed_up(pool: ThreadPoolExecutor, slabs: Sequence[Callable[[], object]]) -> tuple[float, float]:
    """The slabs in one thread, then drawn by two: twice the first's processor time by theirs, clock by clock."""

    def drawn_by(threads: int) -> tuple[float, float]:
        queue = iter(slabs)

        def draw() -> None:
            for slab in queue:
                slab()

        started = time.perf_counter()
        futures = [pool.submit(_seconds, draw, time.thread_time) for _ in range(threads)]
        processor = sum(future.result() for future in futures)
        return processor, time.perf_counter() - started

    (one, alone), (two, both) = drawn_by(1), drawn_by(2)
    return 2 * one / two, alone / both


def _repeat(task: Callable[[], object], times: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(times):
            task()

    return repeated


def _side(work: Callable[[slice], object], rows: int) -> Side:
    low, high = slice(rows // 2), slice(rows // 2, None)
    return Side(lambda: work(slice(None)), (lambda: work(low), lambda: work(high)))


def bench_quantize(name: str, rows: Floats, weights: Floats | None, ggml: Oracle, options: argparse.Namespace) -> Row:
    """Quantize `rows`; the few rows of a slow type keep ggml's part to seconds."""
    out = np.empty((rows.shape[0], FORMATS[name].row_bytes(rows.shape[1])), np.uint8)
    ggml.prepare(name)
    ours = _side(lambda part: kernels.quantize_into(rows[part], name, out[part], weights), len(rows))
    theirs = _side(lambda part: ggml.quantize(rows[part], name, weights), len(rows))
    return _measure(name, "plain" if weights is None else "imatrix", (ours, theirs), rows.size, options)


def bench_dequantize(name: str, rows: Floats, weights: Floats, ggml: Oracle, options: argparse.Namespace) -> Row:
    blocks = kernels.quantize(rows, name, weights)
    out, their_out = np.empty_like(rows), np.empty_like(rows)
    ours = _side(lambda part: kernels.dequantize_into(blocks[part], name, out[part]), len(rows))
    theirs = _side(lambda part: ggml.dequantize_into(blocks[part], name, their_out[part]), len(rows))
    return _measure(name, "dequantize", (ours, theirs), rows.size, options)


def table(rows: list[Row]) -> str:
    lines = ["| type | | Mw/s | ggml Mw/s | ratio |", "|---|---|---:|---:|---:|"]
    lines += [f"| {row.name} | {row.how} | {row.ours:,.0f} | {row.theirs:,.1f} | {row.ratio:.1f} |" for row in rows]
    if rows[0].threads is not None:
        lines[:2] = [f"{lines[0]} 2 threads | by the clock | ggml's |", f"{lines[1]}---:|---:|---:|"]
        lines[2:] = [
            f"{line} {row.threads[0]:.2f} | {row.threads[1]:.2f} | {row.threads[2]:.2f} |"
            for line, row in zip(lines[2:], rows, strict=True)
            if row.threads is not None
        ]
    return "\n".join(lines)


def _summary(rows: list[Row]) -> str:
    lines = []
    for how in ("imatrix", "plain", "dequantize"):
        chosen = [row for row in rows if row.how == how]
        if chosen:
            worst = min(chosen, key=lambda row: row.ratio)
            lines.append(
                f"{how}: geometric mean {geometric_mean(row.ratio for row in chosen):.1f} x ggml over {len(chosen)} "
                f"types, least {worst.ratio:.1f} x ({worst.name})"
            )
            measured = [row.threads for row in chosen if row.threads is not None]
            if measured:
                ours, clock, theirs = (median(figures) for figures in zip(*measured, strict=True))
                lines[-1] += (
                    f"; two threads {ours:.2f} x one (median), by the clock {clock:.2f} x, ggml's {theirs:.2f} x"
                )
    return "\n".join(lines)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="types to measure (all)")
    parser.add_argument("--rows", type=int, default=256, help="a sixteenth for types with a codebook")
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", action="store_true", help="measure two threads too")
    options = parser.parse_args(arguments)
    if not BYTE_EXACT:
        parser.error("the reference is ggml's x86-64 Linux build")
    names = [name.upper() for name in options.types] or [name for name in FORMATS if name in kernels.quantizable]
    rng = np.random.default_rng(1)
    rows = (rng.standard_t(4, (options.rows, options.columns)) * 0.02).astype(np.float32)
    weights = (rng.random(options.columns) ** 3).astype(np.float32)
    for step in kernels.warm(names):
        print(f"\r{step.index}/{step.total} {step.name:10}", end="", file=sys.stderr)
    print(file=sys.stderr)
    results = []
    for name in names:
        few = rows[: max(2, options.rows // 16)] if name in USES_CODEBOOK else rows
        if name in kernels.USES_IMATRIX:
            results.append(bench_quantize(name, few, weights, oracle(), options))
        if name not in kernels.REQUIRES_IMATRIX:
            results.append(bench_quantize(name, few, None, oracle(), options))
        if name in kernels.dequantizable and name != "F32":
            results.append(bench_dequantize(name, rows, weights, oracle(), options))
        print(f"{name} measured", file=sys.stderr)
    results.sort(key=lambda row: ("imatrix", "plain", "dequantize").index(row.how))
    print(f"{_processor()}, {options.rows} x {options.columns} weights, medians of {options.rounds}\n")
    print(f"{table(results)}\n\n{_summary(results)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
