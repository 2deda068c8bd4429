"""A prune scan over two workers against one, each of one thread: wall time of the whole command.

python tests/benchmarks/bench_fleet.py MODEL TEXT [--chunks 16] [--rounds 3]

Every run has a scheduler, workers, state and cache folders of its own, made anew; a scan of one layer warms it up. One
worker and two take turns. Prints each run, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
WARM_UP = ("--layers", "0", "--chunks", "1")


@contextmanager
def process(module: str, *words: str, env: dict[str, str]) -> Iterator[None]:
    """`python -m module words` for as long as it is needed."""
    command = [sys.executable, "-m", module, *words]
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait()


def appeared(path: Path) -> None:
    """Wait for a file that another process writes."""
    until = time.monotonic() + 60
    while not (path.is_file() and path.stat().st_size):
        if time.monotonic() > until:
            raise SystemExit(f"{path.name} did not appear")
        time.sleep(0.1)


@contextmanager
def cluster(folder: Path, workers: int, env: dict[str, str]) -> Iterator[str]:
    """The address of a scheduler with so many workers."""
    file = str(folder / "scheduler.json")
    with ExitStack() as stack:
        scheduler = ("--scheduler-file", file, "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
        stack.enter_context(process("distributed.cli.dask_scheduler", *scheduler, env=env))
        appeared(Path(file))
        worker = ("--scheduler-file", file, "--nthreads", "1", "--resources", "engine=1", "--no-dashboard",
                  "--no-nanny", "--local-directory", str(folder))  # fmt: skip
        for _ in range(workers):
            stack.enter_context(process("distributed.cli.dask_worker", *worker, env=env))
        from distributed import Client

        with Client(scheduler_file=file, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
            address = str(client.scheduler.address)
        yield address


def seconds(model: str, text: str, workers: int, *options: str) -> float:
    """How long one scan of all layers takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = os.environ | {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE")}
        env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
        with cluster(folder, workers, env) as address:
            command = [sys.executable, "-m", "surgeon", "prune-scan", "-m", model, "-f", text, "-t", "1",
                       "--scheduler", address]  # fmt: skip
            subprocess.run([*command, *WARM_UP], env=env, check=True, capture_output=True)
            start = time.monotonic()
            subprocess.run([*command, *options], env=env, check=True, capture_output=True)
            return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--chunks", default="16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.rounds):
        for workers, times in found.items():
            times.append(seconds(options.model, options.text, workers, "--chunks", options.chunks))
            print(f"round {turn + 1}, {workers} worker{'s'[: workers - 1]}: {times[-1]:.1f} s", flush=True)
    one, two = (statistics.median(times) for times in found.values())
    ratios = [first / second for first, second in zip(found[1], found[2], strict=True)]
    print(f"medians {one:.1f} s and {two:.1f} s: {one / two:.2f} times as fast (rounds: {min(ratios):.2f} to "
          f"{max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
