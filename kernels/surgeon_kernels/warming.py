"""Compiling kernels, or loading them from the cache, before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import validation
from .cache import Kernel
from .formats import by_name
from .registry import dequantizable, module_of, quantizable


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """`name` is about to be made ready, as number `index` (from 0) of `total`; at the end index == total, no name."""

    name: str
    index: int
    total: int


def warm(names: Iterable[str], *, weights: bool = True, sources: Iterable[str] | None = None) -> Iterator[WarmProgress]:
    """Make ready what quantizing to `names` and reading `sources` takes; yields before each kernel and at the end.

    Kernels compile once per user and processor and load from the cache afterwards. With `sources` (types to
    dequantize from), `names` get their quantizers only; without, quantizers and dequantizers both. Types without
    kernels are passed over. One kernel serves with and without an importance matrix, so `weights` changes nothing
    but documents the call. Raises ValueError for an unknown type.
    """
    del weights
    targets = {by_name(name).name for name in names}
    origins = targets if sources is None else {by_name(name).name for name in sources}
    jobs = [("validation", "validate")]
    jobs += [(name, "dequantize") for name in sorted(origins & dequantizable)]
    jobs += [(name, "quantize") for name in sorted(targets & quantizable)]
    for index, (name, job) in enumerate(jobs):
        yield WarmProgress(name, index, len(jobs))
        for kernel in _kernels(name, job):
            kernel.compile()
    yield WarmProgress("", len(jobs), len(jobs))


def _kernels(name: str, job: str) -> list[Kernel]:
    if job == "validate":
        return [validation.first_block, validation.first_word]
    return [getattr(module_of(name), job)]
