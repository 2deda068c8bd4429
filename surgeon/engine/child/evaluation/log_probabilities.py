"""Log-softmax over the vocabulary, with llama.cpp's choice of precisions so that the figures agree to its last decimal.

exp in float32, its sum in float64, the rest as each function says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.llama.model import Logits, Tokens

Float64 = NDArray[np.float64]
_SLAB = 1 << 21  # logits worked on at once by one thread: 8 MB, and as much again for each intermediate
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Per row of logits: maximum float32[n] and log Σ exp(l − max) float64[n]."""

    maximum: NDArray[np.float32]
    log_sum: Float64


def normaliser(logits: Logits) -> Normaliser:
    """Of each row of logits float32[n, n_vocab]."""
    maximum = logits.max(axis=1)
    exponentials = logits - maximum[:, None]
    np.exp(exponentials, out=exponentials)
    return Normaliser(maximum, np.log(exponentials.sum(axis=1, dtype=np.float64)))


def negative_log_likelihood(logits: Logits, targets: Tokens) -> Float64:
    """−log p(target) per row, float64[n]."""

    def part(rows: slice) -> Float64:
        norm = normaliser(logits[rows])
        chosen = logits[rows][np.arange(rows.stop - rows.start), targets[rows]]
        return np.asarray(norm.log_sum - (chosen - norm.maximum).astype(np.float64))

    return np.concatenate(list(by_slabs(logits.shape, part)))


def by_slabs(shape: tuple[int, ...], function: Callable[[slice], T], workers: int = 4) -> Iterator[T]:
    """function(rows) over slabs of rows in a few threads (numpy lets go of the interpreter), results in order."""
    step = max(1, _SLAB // shape[1])
    slabs = [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    if len(slabs) == 1:
        yield function(slabs[0])
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, slabs)
