"""Adding up x xᵀ over the rows of every input of a matrix, beside the sums of squares of `imatrix_collection`.

Only the upper triangle, in panels (`raw_moments`): half the memory and nearly half the arithmetic of the whole. A panel
is one matrix product; the engine's threads are idle while the graph waits for the callback, as many share the panels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import ImatrixJob
from surgeon.engine.raw_moments import PANEL, Contents, RawInput, RawMoments, panel_values, panels, raw_path, write

Float32 = NDArray[np.float32]
HEADS = ("output.weight", "token_embd.weight")  # the second where embeddings are tied
RUN = 4  # chunks: runs of so many go to the two halves of the text in turn


@dataclass
class _Sums:
    """One input. values: float32 panels, flat, [matrices, halves, values]; tokens: int64[matrices, halves]."""

    columns: int
    values: Float32
    tokens: NDArray[np.int64]


class MomentSums:
    """Σ x xᵀ of every input wanted, by the name of the first weight that multiplies it.

    `half` is where rows go that are added now. Raises EngineError where an input's shape changes or a sum overflows.
    """

    def __init__(self, job: ImatrixJob, threads: int) -> None:
        self._stem, self._block, self._halves = job.moments, job.moments_block, job.moments_halves
        self._collection = job.run
        self._layers = None if job.moments_layers is None else frozenset(job.moments_layers)
        self._head = job.moments_head or job.moments_layers is None
        self._run = max(RUN, job.n_batch // job.n_ctx)
        self._inputs: dict[str, _Sums] = {}
        self._users: dict[str, list[str]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="moments")
        self._threads = threads
        self.half = 0
        if job.moments_from:
            self._load(RawMoments(Path(job.moments_from), job.run))

    def wants(self, weight: str) -> bool:
        """Whether this weight's input is to be collected."""
        if weight in HEADS:
            return self._head
        if not weight.startswith("blk.") or self._layers is None:
            return weight.startswith("blk.")
        number = weight.removeprefix("blk.").partition(".")[0]
        return number.isdigit() and int(number) in self._layers

    def share(self, weight: str, first: str) -> None:
        """Note that `weight` multiplies the input of `first`."""
        users = self._users.get(first)
        if users is not None and weight not in users:
            users.append(weight)

    def start_at(self, chunk: int) -> None:
        """The batch that comes next begins with this chunk of the text."""
        self.half = chunk // self._run % self._halves

    def add(self, weight: str, matrices: int, matrix: int, x: Float32) -> None:
        """Add rows float32[n, columns] to the input that `weight` is the first to multiply."""
        sums = self._inputs.get(weight)
        if sums is None:
            sums = self._inputs[weight] = self._zeros(x.shape[1], matrices)
            self._users.setdefault(weight, [weight])
        if sums.tokens.shape[0] != matrices or sums.columns != x.shape[1]:
            raise EngineError(f"{weight}: its input had {sums.columns} channels and now has {x.shape[1]}")
        sums.tokens[matrix, self.half] += len(x)
        values, start, jobs = sums.values[matrix, self.half], 0, []
        for first, end, last in panels(sums.columns, self._block):
            size = (end - first) * (last - first)
            jobs.append((values[start : start + size].reshape(end - first, last - first), first, end, last))
            start += size
        shares = [jobs[number :: self._threads] for number in range(min(self._threads, len(jobs)))]
        list(self._pool.map(lambda share: _add_products(x, share), shares))

    def save(self, chunks: int) -> None:
        """Keep the sums of the text's first `chunks` chunks in a file. Raises EngineError."""
        for weight, sums in self._inputs.items():
            if not all(np.isfinite(part).all() for part in sums.values.reshape(-1, sums.values.shape[-1])):
                raise EngineError(f"{weight}: the sums over its input passed the range of float32; use a shorter text")
        inputs = [
            RawInput(weight, self._users[weight], sums.columns, len(sums.tokens), sums.tokens.tolist())
            for weight, sums in self._inputs.items()
        ]
        contents = Contents(chunks, self._block, self._halves, inputs, self._collection)
        write(raw_path(self._stem, chunks), contents, (sums.values for sums in self._inputs.values()))

    def close(self) -> None:
        self._pool.shutdown()

    def _zeros(self, columns: int, matrices: int) -> _Sums:
        halves = self._halves
        values = np.zeros((matrices, halves, panel_values(columns, self._block)), np.float32)
        return _Sums(columns, values, np.zeros((matrices, halves), np.int64))

    def _load(self, raw: RawMoments) -> None:
        if (raw.contents.block, raw.contents.halves) != (self._block, self._halves):
            raise EngineError(f"{raw.path}: was collected with other blocks or halves; start again without --resume")
        for one in raw.contents.inputs:
            sums = self._inputs[one.weight] = self._zeros(one.columns, one.matrices)
            sums.tokens[:] = one.tokens
            for matrix in range(one.matrices):
                for half in range(self._halves):
                    parts = [panel.ravel() for panel in raw.panels(one, matrix, half)]
                    np.concatenate(parts, out=sums.values[matrix, half])
            self._users[one.weight] = list(one.users)


def _add_products(x: Float32, share: list[tuple[Float32, int, int, int]]) -> None:
    """Add x[:, first:end]ᵀ x[:, first:last] to each panel."""
    room = np.empty(PANEL * x.shape[1], np.float32)
    for panel, first, end, last in share:
        product = room[: panel.size].reshape(panel.shape)
        np.matmul(x[:, first:end].T, x[:, first:last], out=product)
        panel += product
