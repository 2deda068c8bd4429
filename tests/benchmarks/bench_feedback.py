"""Speed of the feedback encoder beside ggml's plain quantizer with an importance matrix, in one run, as a table.

    python tests/benchmarks/bench_feedback.py [TYPE ...] [--rows N] [--columns N] [--repeat N] [--threads]

Student-t weights (4 degrees of freedom, scale 0.02) under second moments with a decaying spectrum and channels of
different size. One thread, its processor time; per column the median and the best of the repetitions, as on a busy
machine other programs take their share of caches and memory. Millions of weights per second:

    stock           our quantizer with an importance matrix: the search that fixes the grid
    sweep           the kernel that rounds column by column
    sweep + round   and one round of scales and codes
    guard           the comparison with the stock rows
    whole           quantize_with_feedback with one round: stock, sweep, round, guard, packing
    ggml            ggml_quantize_chunk with an importance matrix

First the factor of the moments (seconds, once per input). With --threads, how many times the work of one thread two do,
by the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT / "tests" / "kernels")]

from oracle import BYTE_EXACT, oracle  # noqa: E402

import surgeon_kernels as kernels  # noqa: E402
from surgeon_kernels.feedback import encoder, encodings  # noqa: E402
from surgeon_kernels.feedback.products import ROWS  # noqa: E402
from surgeon_kernels.formats import FORMATS  # noqa: E402

Floats = NDArray[np.float32]
_KERNELS = {
    "sweep": "sweep",
    "sweep_points": "sweep",
    "improve": "round",
    "improve_points": "round",
    "losses_up_to": "guard",
    "quantize_into": "stock",
}


class Clock:
    """Processor time of this thread by part, while the encoder runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        for module, names in (
            (encodings, ("sweep", "sweep_points", "improve", "improve_points")),
            (encoder, ("losses_up_to",)),
            (encoder.interface, ("quantize_into",)),
        ):
            for name in names:
                setattr(module, name, self._timed(getattr(module, name), _KERNELS[name]))

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] += time.thread_time() - started

        return timed


def moments(columns: int) -> Floats:
    rng = np.random.default_rng(0)
    spectrum = (1 / np.sqrt(1 + np.arange(columns))).astype(np.float32)
    inputs = rng.standard_normal((2 * columns, columns), dtype=np.float32) * spectrum
    inputs = inputs @ rng.standard_normal((columns, columns), dtype=np.float32)
    inputs *= np.exp(rng.standard_normal(columns) * 0.5).astype(np.float32)
    found: Floats = inputs.T @ inputs / np.float32(len(inputs))
    return found


def measure(name: str, rows: Floats, factor: kernels.FeedbackFactor, clock: Clock, options: Any) -> str:
    """One row of the table."""
    figures: dict[str, list[float]] = defaultdict(list)
    million = rows.size / 1e6
    few = rows[: max(2, len(rows) // 16)] if name in kernels.feedback_types and FORMATS[name].block == 256 else rows
    oracle().prepare(name)
    for _ in range(options.repeat):
        clock.seconds.clear()
        started = time.thread_time()
        kernels.quantize_with_feedback(rows, name, factor, rounds=1)
        figures["whole"].append(million / (time.thread_time() - started))
        for part in ("stock", "sweep", "guard"):
            figures[part].append(million / clock.seconds[part])
        figures["sweep + round"].append(million / (clock.seconds["sweep"] + clock.seconds["round"]))
        started = time.thread_time()
        oracle().quantize(few, name, factor.diagonal)
        figures["ggml"].append(few.size / 1e6 / (time.thread_time() - started))
    cells = [
        f"{median(figures[part]):.3g} ({max(figures[part]):.3g})"
        for part in ("stock", "sweep", "sweep + round", "guard", "whole", "ggml")
    ]
    if options.threads:
        cells.append(f"{two_threads(name, rows, factor):.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def two_threads(name: str, rows: Floats, factor: kernels.FeedbackFactor) -> float:
    """The time of one thread over that of two, which draw slabs from a queue."""

    def seconds(threads: int) -> float:
        slabs = iter([rows[start : start + ROWS] for start in range(0, len(rows), ROWS)])

        def draw() -> None:
            for slab in slabs:
                kernels.quantize_with_feedback(slab, name, factor)

        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(draw) for _ in range(threads)]:
                future.result()
        return time.perf_counter() - started

    return seconds(1) / seconds(2)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="types to measure (all)")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", action="store_true", help="measure two threads too")
    options = parser.parse_args(arguments)
    if not BYTE_EXACT:
        parser.error("the reference is ggml's x86-64 Linux build")
    names = [name.upper() for name in options.types] or sorted(kernels.feedback_types)
    rng = np.random.default_rng(1)
    rows = (rng.standard_t(4, (options.rows, options.columns)) * 0.02).astype(np.float32)
    for step in kernels.warm(names, feedback=True):
        print(f"\r{step.index}/{step.total} {step.name:10}", end="", file=sys.stderr)
    print(file=sys.stderr)
    h = moments(options.columns)
    started = time.thread_time()
    factor = kernels.factor(h, shrink=0.5)
    print(f"factor of {options.columns} x {options.columns}: {time.thread_time() - started:.1f} s\n")
    heads = ["type", "stock", "sweep", "sweep + round", "guard", "whole", "ggml", *["2 threads"] * options.threads]
    print("| " + " | ".join(heads) + " |\n|---" + "|---:" * (len(heads) - 1) + "|")
    clock = Clock()
    for name in names:
        kernels.quantize_with_feedback(rows[:ROWS], name, factor)
        print(measure(name, rows, factor, clock, options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
