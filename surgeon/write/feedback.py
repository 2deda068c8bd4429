"""The feedback encoder in a write: which second moments a slab goes by, and their factors.

Factors are made in a thread of their own, in the order in which they are needed. Tensors that share an input follow
each other, so that one factor at a time is held; the next is made meanwhile where both are small. The thread is left
behind when a write is cancelled: a large factor takes longer than anyone waits.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.errors import Cancelled
from surgeon.moments.moments import Input, Moments
from surgeon.moments.thresholds import FEWEST
from surgeon.plan.plan import Plan
from surgeon.resolve.resolution import Resolution
from surgeon.write import array_module

Key = tuple[str, int]
"""An input and its matrix (that of an expert)."""

ROWS = 64  # that the encoder works on at once
SLAB_ELEMENTS = 1 << 18  # a slab takes a fraction of a second; its size changes no byte
DEFAULT_SHRINK = 0.5
SAMPLE_ROWS = 64  # of one matrix, to choose the shrinkage by
WIDEST_SAMPLE = 4096  # columns; five matrices of the full width would be too much memory
_SMALL = 64 << 20  # bytes of a float32 matrix; two factors of that size may be there at once
_POLL_SECONDS = 0.05
# Of one thread: for a weight, for each column of its input besides, and for a factor by the cube of its columns.
_WEIGHT_SECONDS, _COLUMN_SECONDS, _FACTOR_SECONDS = 5e-8, 4e-11, 1e-10

Sample = Callable[[Key], tuple[NDArray[np.float32], str]]
"""Some rows of the first tensor that reads an input, float32[n, columns], and the type it shall have."""


class Feedback:
    """Encodes slabs with the moments of the resolution. `begin` comes before the first slab."""

    def __init__(self, moments: Moments, plan: Plan, cancelled: threading.Event) -> None:
        self._moments, self._cancelled = moments, cancelled
        self._shrink, self._rounds = plan.shrink, plan.feedback_rounds
        self._ready: dict[Key, Any] = {}
        self._left: Counter[Key] = Counter()
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None

    def is_usable(self, key: Key) -> bool:
        """Whether enough tokens were seen."""
        return self._moments.ratios[key[0]][key[1]] >= FEWEST

    def begin(self, keys: Iterable[Key], sample: Sample) -> None:
        """Make the factors that slabs, in this order, will ask for; sample: to choose a shrinkage by."""
        self._left = Counter(keys)
        if self._left:
            threading.Thread(target=self._run, args=(list(self._left), sample), name="factors", daemon=True).start()

    def encoded(
        self, key: Key, rows: NDArray[np.float32], type_name: str, weights: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Blocks of rows float32[r, columns]. Raises ValueError as the encoder does, Cancelled, MomentsError."""
        try:
            blocks: NDArray[np.uint8] = surgeon_kernels.quantize_with_feedback(
                rows, type_name, self._factor(key), weights=weights, rounds=self._rounds, stop=self._cancelled.is_set
            )
        except surgeon_kernels.FeedbackStopped:
            raise Cancelled("cancelled while rows were encoded") from None
        return blocks

    def await_factor(self, key: Key) -> None:
        """Wait until `encoded` need not. Raises Cancelled, MomentsError."""
        self._factor(key)

    def finished(self, key: Key) -> None:
        """A slab less needs this factor; with the last one it goes."""
        with self._changed:
            self._left[key] -= 1
            if self._left[key] == 0:
                self._ready.pop(key, None)
                self._changed.notify_all()

    def stop(self) -> None:
        """Make no more factors."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _factor(self, key: Key) -> Any:
        with self._changed:
            while key not in self._ready:
                if self._error is not None:
                    raise self._error
                if self._stopped or self._cancelled.is_set():
                    raise Cancelled("cancelled while second moments were factored")
                self._changed.wait(_POLL_SECONDS)
            return self._ready[key]

    def _run(self, keys: list[Key], sample: Sample) -> None:
        try:
            for key in keys:
                if not self._waited_for_room(key):
                    return
                made = self._made(key, sample)
                with self._changed:
                    self._ready[key] = made
                    self._changed.notify_all()
                del made
        except BaseException as error:  # raised again by whoever waits for a factor
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _waited_for_room(self, key: Key) -> bool:
        """False when the write ends before there is room for one more factor."""
        with self._changed:
            while not (self._stopped or self._has_room(key)):
                self._changed.wait()
            return not self._stopped

    def _has_room(self, key: Key) -> bool:
        """Large factors are made only when no other is there."""
        return not self._ready or (len(self._ready) < 2 and all(self._is_small(one) for one in (key, *self._ready)))

    def _is_small(self, key: Key) -> bool:
        one = self._moments.inputs[key[0]]
        return 4 * one.columns * self._moments.width(one) <= _SMALL

    def _made(self, key: Key, sample: Sample) -> Any:
        one = self._moments.inputs[key[0]]
        shrink = self._shrink if self._shrink is not None else self._chosen(key, one, sample)
        device = array_module.found()
        elsewhere = None if device is None else device.elsewhere
        return surgeon_kernels.factor(self._moments.blocks(one, key[1]), shrink=shrink, elsewhere=elsewhere)

    def _chosen(self, key: Key, one: Input, sample: Sample) -> float:
        """The shrinkage that does best on the other half of the text; DEFAULT_SHRINK where there is none."""
        width = min(self._moments.width(one), WIDEST_SAMPLE)
        if self._moments.head.halves < 2 or (one.tokens[key[1]] < width).any():
            return DEFAULT_SHRINK
        rows, type_name = sample(key)
        columns = np.arange(width) * self._moments.width(one) // width  # spread over the whole input where it is wider
        first, second = (self._moments.blocks(one, key[1], half)[0][np.ix_(columns, columns)] for half in (0, 1))
        return float(surgeon_kernels.choose_shrink(np.ascontiguousarray(rows[:, columns]), type_name, first, second))


def feedback_seconds(resolution: Resolution, threads: int) -> float:
    """About how long the feedback encoder takes for this plan, from what it took on a 2.4 GHz Zen 3."""
    rounds, work, factors = resolution.plan.feedback_rounds, 0.0, {}
    for op in resolution.with_feedback:
        columns = op.tensor.ne[0]
        work += op.n_elements * (_WEIGHT_SECONDS + (1 + 2 * rounds) / 3 * columns * _COLUMN_SECONDS)
        factors[op.feedback] = prod(op.tensor.ne[2:]) * columns**3 * _FACTOR_SECONDS
    return work / threads + sum(factors.values())
