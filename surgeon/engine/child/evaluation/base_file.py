"""The file of saved log-probabilities that llama-perplexity writes and reads with --kl-divergence-base.

"_logits_"  int32 n_ctx  int32 n_vocab  int32 n_chunk  int32 tokens[n_chunk × n_ctx]
then per chunk n_ctx − 1 − n_ctx/2 records of uint16[2·⌊(n_vocab+1)/2⌋ + 4]:
    float32 scale, float32 min_log_prob (in the first 4 uint16), n_vocab codes, maybe one of padding
log p = scale · code + min_log_prob; probabilities below e⁻¹⁶ of the greatest have code 0.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.evaluation.log_probabilities import Float64, by_slabs, normaliser
from surgeon.engine.child.evaluation.windows import Rows
from surgeon.engine.child.llama.model import Logits, Tokens
from surgeon.engine.errors import EngineError

_MAGIC = b"_logits_"
_DEPTH = 16.0  # natural logarithms below the maximum that are kept
Codes = NDArray[np.uint16]


def record_length(n_vocab: int) -> int:
    """uint16 in a record."""
    return 2 * ((n_vocab + 1) // 2) + 4


def encode(logits: Logits, targets: Tokens) -> tuple[Codes, Float64]:
    """Records uint16[n, record_length] of logits float32[n, n_vocab], and −log p of the targets, float64[n]."""
    n_vocab = logits.shape[1]
    records = np.zeros((len(logits), record_length(n_vocab)), np.uint16)
    norm = normaliser(logits)
    log_sum = norm.log_sum.astype(np.float32)
    lowest = np.maximum(logits.min(axis=1), norm.maximum - np.float32(_DEPTH))
    scale = (norm.maximum - lowest) / np.float32(65535)
    head = np.stack([scale, lowest - norm.maximum - log_sum], axis=1).astype("<f4")
    records[:, :4] = head.view("<u2")
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    steps = (logits - lowest[:, None]) * inverse[:, None]
    records[:, 4 : 4 + n_vocab] = np.rint(np.maximum(steps, 0, out=steps), out=steps)
    chosen = logits[np.arange(len(logits)), targets]
    return records, (norm.maximum + log_sum - chosen).astype(np.float64)


@dataclass(frozen=True)
class Decoded:
    """codes: uint16[n, n_vocab]; scale, minimum: float32[n]."""

    codes: Codes
    scale: NDArray[np.float32]
    minimum: NDArray[np.float32]

    def log_probabilities(self, rows: slice) -> NDArray[np.float32]:
        """float32[n, n_vocab] of some rows."""
        return self.codes[rows].astype(np.float32) * self.scale[rows, None] + self.minimum[rows, None]


class BaseWriter:
    """Writes a base file in place (the parent gives a temporary name and renames it at the end). Raises OSError.

    chunks: all of them; first: the chunk whose records are added first, where others write those of the rest.
    """

    def __init__(self, path: str, chunks: Tokens, n_vocab: int, first: int = 0) -> None:
        self._path, self._chunks, self._n_vocab, self._first = path, chunks, n_vocab, first

    def __enter__(self) -> Self:
        n_chunk, n_ctx = self._chunks.shape
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        self._file.write(_MAGIC + struct.pack("<iii", n_ctx, self._n_vocab, n_chunk))
        self._file.write(np.ascontiguousarray(self._chunks, "<i4").tobytes())
        rows = n_ctx - 1 - n_ctx // 2
        self._file.seek(2 * record_length(self._n_vocab) * rows * self._first, os.SEEK_CUR)
        return self

    def add(self, rows: Rows) -> Float64:
        """Append the records of these rows; returns −log p of their targets."""
        nll = []

        def part(slab: slice) -> tuple[Codes, Float64]:
            return encode(rows.logits[slab], rows.targets[slab])

        for records, values in by_slabs(rows.logits.shape, part):
            self._file.write(records.astype("<u2", copy=False).tobytes())
            nll.append(values)
        return np.concatenate(nll)

    def finish(self) -> None:
        """Everything is written: put it on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._file.close()


class BaseFile:
    """A saved base, opened. Raises EngineError where it is another kind of file or is cut off."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC) + 12)
            if len(head) < len(_MAGIC) + 12 or not head.startswith(_MAGIC):
                raise EngineError(f"{path}: not a file of saved log-probabilities (make one with --kl-divergence-base)")
            self.n_ctx, self.n_vocab, self.n_chunks = struct.unpack("<iii", head[len(_MAGIC) :])
            if self.n_ctx < 4 or self.n_vocab < 1 or self.n_chunks < 1:
                raise EngineError(
                    f"{path}: absurd sizes (n_ctx {self.n_ctx}, vocabulary {self.n_vocab}, {self.n_chunks} chunks)"
                )
            self.rows_per_chunk = self.n_ctx - 1 - self.n_ctx // 2
            self._data = len(head) + 4 * self.n_chunks * self.n_ctx
            record = record_length(self.n_vocab)
            needed = self._data + 2 * record * self.rows_per_chunk * self.n_chunks
            found = os.fstat(file.fileno()).st_size
            if found < needed:
                raise EngineError(f"{path}: cut off: {found} bytes of {needed}; write it again")
            raw = file.read(4 * self.n_chunks * self.n_ctx)
            self.tokens: Tokens = np.frombuffer(raw, "<i4").astype(np.int32).reshape(self.n_chunks, self.n_ctx)
        shape = (self.n_chunks, self.rows_per_chunk, record)
        self._records: NDArray[np.uint16] = np.memmap(path, "<u2", "r", offset=self._data, shape=shape)

    def rows(self, chunk: int, start: int, count: int) -> Decoded:
        """`count` rows of a chunk from its row `start` on."""
        records = np.array(self._records[chunk, start : start + count])
        head = np.ascontiguousarray(records[:, :4]).view("<f4")
        return Decoded(records[:, 4 : 4 + self.n_vocab], head[:, 0].copy(), head[:, 1].copy())
