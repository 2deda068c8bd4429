"""Compiling kernels, or loading them from the cache, before they are needed.

Numba compiles one kernel at a time in a process. Where several are not in the cache, other processes compile some of
them and leave them there: whichever comes first to a kernel holds its lock, the others pass it over, and in the end
this process loads what it did not compile. A process that fails costs nothing but its help.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import validation
from .compilation import Kernel, cache_directory
from .feedback import feedback_types, kernel_set
from .formats import by_name
from .registry import dequantizable, module_of, quantizable

KernelJob = tuple[str, str]
"""A type and what is done with it: `quantize`, `dequantize`; `validation` and `validate`; a set and `feedback`."""

_MOST_HELPERS = 3  # each takes about 300 MB
_helping = threading.Lock()
_START = "from surgeon_kernels.warming import help_out; help_out()"


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """`index` of `total` are ready and `name` is next; at the end index == total, no name."""

    name: str
    index: int
    total: int


def warm(
    names: Iterable[str], *, sources: Iterable[str] | None = None, feedback: bool = False
) -> Iterator[WarmProgress]:
    """Make ready what quantizing to `names` and reading `sources` takes; yields before each kernel and at the end.

    Kernels compile once per user and processor and load from the cache afterwards; up to three more processes of this
    Python help to compile. With `sources` (types to dequantize from), `names` get their quantizers only; without,
    quantizers and dequantizers both. Types without kernels are passed over. One kernel serves with and without an
    importance matrix. With `feedback` also the kernels of the feedback encoder for `names`, which reads what the stock
    search wrote. Raises ValueError for an unknown type.
    """
    targets = {by_name(name).name for name in names}
    origins = targets if sources is None else {by_name(name).name for name in sources}
    with_feedback = targets & feedback_types if feedback else set()
    origins = origins | with_feedback
    jobs = [("validation", "validate")]
    jobs += [(name, "dequantize") for name in sorted(origins & dequantizable)]
    jobs += [(name, "quantize") for name in sorted(targets & quantizable)]
    jobs += sorted({(kernel_set(name), "feedback") for name in with_feedback})
    left = jobs
    with _helped(jobs):
        for wait in (False, True):
            passed_over: list[KernelJob] = []
            for place, (name, job) in enumerate(left):
                yield WarmProgress(name, len(jobs) - len(left) + place - len(passed_over), len(jobs))
                if not _is_ready(name, job, wait=wait):
                    passed_over.append((name, job))
            left = passed_over
    yield WarmProgress("", len(jobs), len(jobs))


def _kernels(name: str, job: str) -> list[Kernel]:
    if job == "validate":
        return [validation.first_block, validation.first_word]
    if job == "feedback":
        from .feedback.encodings import kernels_of

        return kernels_of(name)
    return [getattr(module_of(name), job)]


def _is_ready(name: str, job: str, *, wait: bool) -> bool:
    """Compile or load the kernels of a job; not `wait`: False if another process is compiling one of them."""
    return all(kernel.compile(wait=wait) is not None for kernel in _kernels(name, job))


def _is_kept(name: str, job: str) -> bool:
    return all(kernel.is_kept for kernel in _kernels(name, job))


@contextlib.contextmanager
def _helped(jobs: Sequence[KernelJob]) -> Iterator[None]:
    """Other processes compile with this one, unless they do so for another thread already."""
    if not _helping.acquire(blocking=False):
        yield
        return
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        helpers = _helpers([job for job in jobs if not _is_kept(*job)])
        yield
    finally:
        for helper in helpers:
            helper.terminate()  # nothing is left for it to do, or nobody wants it any more
            helper.wait()
        _helping.release()


def _helpers(cold: Sequence[KernelJob]) -> list[subprocess.Popen[bytes]]:
    """Processes that each begin at another place of what is not in the cache."""
    count = min(len(cold), _processors(), 1 + _MOST_HELPERS) - 1
    if cache_directory() is None or not Path(sys.executable).name.startswith("python"):  # a program around Python
        return []
    starts = [len(cold) * number // (count + 1) for number in range(1, count + 1)]
    try:
        return [_helper([*cold[start:], *cold[:start]]) for start in starts]
    except OSError:  # no process can be started: it goes without help
        return []


def _helper(jobs: Sequence[KernelJob]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", _START, *(f"{name}:{job}" for name, job in jobs)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def help_out() -> None:
    """The helping process: compile what the arguments name (`Q4_K:quantize`), unless another has it or had it."""
    if hasattr(os, "nice"):
        os.nice(5)  # the screen, and the process that waits, come first
    for argument in sys.argv[1:]:
        name, _, job = argument.partition(":")
        if not _is_kept(name, job):
            _is_ready(name, job, wait=False)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
