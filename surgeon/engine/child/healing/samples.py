"""The tokens that a matrix is fitted on: what goes into it, and what it shall add to the stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.healing.ridge import Float32

_BLOCK = 4096  # tokens at once: their float32 copies stay below a few hundred MB at any width


@dataclass(frozen=True)
class Chunks:
    """The chunks of the texts. kinds: which text each is of; held: kept back from fitting; n_ctx: tokens of each."""

    kinds: NDArray[np.int64]
    held: NDArray[np.bool_]
    n_ctx: int

    @property
    def n_kinds(self) -> int:
        return int(self.kinds.max()) + 1

    def rows(self, kind: int | None, held: bool | None, at_most: int = 0) -> Iterator[NDArray[np.int64]]:
        """Token numbers of the chunks of one kind (None: all), held back or not (None: both), block by block.

        at_most: about so many tokens, of chunks spread over all of them (0: all).
        """
        chosen = np.ones(len(self.kinds), np.bool_)
        if kind is not None:
            chosen &= self.kinds == kind
        if held is not None:
            chosen &= self.held == held
        at_once = max(1, _BLOCK // self.n_ctx)
        numbers = np.flatnonzero(chosen)
        if 0 < at_most < len(numbers) * self.n_ctx:
            numbers = numbers[np.linspace(0, len(numbers) - 1, max(1, at_most // self.n_ctx)).astype(int)]
        for start in range(0, len(numbers), at_once):
            first = numbers[start : start + at_once, None] * self.n_ctx
            yield (first + np.arange(self.n_ctx)).reshape(-1)


@dataclass(frozen=True)
class Samples:
    """One matrix's tokens: what it reads and what the stream lacks without it.

    inputs: float32[tokens, f], the matrix's input; before: the stream that its branch is added to; goal: the unpruned
    model's stream that the sum shall be; both float32[tokens, d]. weights: float32[tokens], 1/mean(goal²) with mean 1,
    which is what a norm makes of an error: tokens with enormous streams hardly count.
    """

    inputs: Float32
    before: Float32
    goal: Float32
    weights: Float32
    chunks: Chunks

    def blocks(
        self, kind: int | None = None, held: bool | None = None, at_most: int = 0
    ) -> Iterator[tuple[Float32, Float32, Float32]]:
        """(inputs, what the branch shall add, weights) of the chunks asked for, as `Chunks.rows` has them."""
        for rows in self.chunks.rows(kind, held, at_most):
            yield np.asarray(self.inputs[rows]), self.goal[rows] - self.before[rows], self.weights[rows]


def token_weights(goal: Float32) -> Float32:
    """1/mean(goal²) of every token, scaled to mean 1."""
    weights = np.empty(len(goal), np.float32)
    for start in range(0, len(goal), _BLOCK):
        part = goal[start : start + _BLOCK]
        weights[start : start + _BLOCK] = 1 / np.maximum(np.square(part, dtype=np.float32).mean(axis=1), 1e-20)
    return np.asarray(weights / weights.mean(), np.float32)
