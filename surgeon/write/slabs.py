"""One tensor's way from the input to the output, in slabs: runs of rows short enough to cancel between.

A slab is read, checked for NaN and infinity as llama-quantize does, converted, checked again and written, all in
buffers that stay in the processor's cache. A tensor that keeps its type takes the same way without the conversion: that
is faster than `copy_file_range` with a second read for the check (measured: 0.7-0.8 times its time with two threads;
tensors lie at other offsets than before, so that file systems cannot share their blocks), and works everywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.gguf.file import GGUFFile
from surgeon.imatrix.imatrix import Imatrix
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.tensor_op import TensorOp
from surgeon.write import feedback as feedback_encoder
from surgeon.write.feedback import Feedback, Key
from surgeon.write.output_file import OutputFile, write_error
from surgeon.write.resume_log import Checksum
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX, USES_CODEBOOK, Format

# Small enough for cancelling at once: the slowest search does 5 million weights a second, those without a codebook 50.
# Large enough that the threads do not queue for Python's lock: with a quarter of it, a third of a millisecond for the
# quickest types, two of them wrote Q8_0 at 1.2 and BF16 at 1.0 times the speed of one (measured; now 1.4).
SLAB_ELEMENTS = 1 << 20
CODEBOOK_SLAB_ELEMENTS = 1 << 18
SLAB_BYTES = 1 << 20
HASHES = 1 << 64

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows `first` to `first + rows` of a tensor of the input. For a tensor of unknown format a row is one byte.

    target: the row of the output that the first one becomes; matrix: index of the expert that these rows belong to;
    source_bytes: read for it; memory: bytes of all its buffers.
    """

    first: int
    rows: int
    target: int
    matrix: int
    source_bytes: int
    memory: int


def slab_hash(data: memoryview | bytes, slab: Slab) -> int:
    """XXH3 of a slab's bytes in the output, seeded with its place: the order of the threads does not matter to the sum.

    It takes 5.7 % (± 0.6) of the processor time of copying a model of 543 MB to a RAM disk, 2.6 % of Q4_K_M (2-core AMD
    EPYC virtual machine; zlib.crc32 would take twenty times as long).
    """
    return xxhash.xxh3_64_intdigest(data, slab.target)


class Buffers:
    """The three buffers of one thread, grown on demand."""

    def __init__(self) -> None:
        self._source: Bytes = np.empty(0, np.uint8)
        self._floats: Floats = np.empty(0, np.float32)
        self._output: Bytes = np.empty(0, np.uint8)

    @property
    def nbytes(self) -> int:
        return self._source.nbytes + self._floats.nbytes + self._output.nbytes

    def source(self, nbytes: int) -> Bytes:
        if self._source.size < nbytes:
            self._source = np.empty(nbytes, np.uint8)
        return self._source[:nbytes]

    def floats(self, count: int) -> Floats:
        if self._floats.size < count:
            self._floats = np.empty(count, np.float32)
        return self._floats[:count]

    def output(self, nbytes: int) -> Bytes:
        if self._output.size < nbytes:
            self._output = np.empty(nbytes, np.uint8)
        return self._output[:nbytes]


def _columns(rows: NDArray[Any], ranges: tuple[tuple[int, int], ...]) -> NDArray[Any]:
    """These columns of `rows`, or all of them when there are no ranges."""
    return np.concatenate([rows[:, start:end] for start, end in ranges], axis=1) if ranges else rows


@dataclass(eq=False)
class TensorJob:
    """One kept tensor. number: its place among the kept ones; offset: of its data in the output file, in bytes."""

    op: TensorOp
    number: int
    file: GGUFFile
    imatrix: Imatrix | None
    compat: bool
    output: OutputFile
    offset: int
    feedback: Feedback | None = None
    rows_done: int = 0
    slab_rows: int = 0  # of a slab at most, once there are slabs
    total: int = 0  # the sum of the slabs' hashes so far

    @classmethod
    def of(
        cls,
        resolution: Resolution,
        number: int,
        imatrix: Imatrix | None,
        output: OutputFile,
        offset: int,
        feedback: Feedback | None,
    ) -> TensorJob:
        """The job of kept tensor `number`; feedback: for those that the plan writes by second moments."""
        op = resolution.kept[number]
        source = resolution.heal.model.file if resolution.heal and op.healed else resolution.model.file
        used = feedback if op.feedback is not None else None
        return cls(op, number, source, imatrix, resolution.plan.compat, output, offset, used)

    @cached_property
    def source_bytes(self) -> int:
        """Bytes to read."""
        return self.n_rows * self.source_row_bytes

    @property
    def is_copy(self) -> bool:
        return self.op.action == "copy"

    @property
    def feedback_input(self) -> str | None:
        """The input whose second moments it is written by."""
        return None if self.feedback is None or self.is_copy else self.op.feedback

    @property
    def matrices(self) -> int:
        """Of a tensor of experts; 1 of others."""
        return prod(self.op.read.ne[2:])

    @cached_property
    def source_format(self) -> Format | None:
        return self.op.read.info.format

    @cached_property
    def columns(self) -> int:
        """Of a row of the output."""
        return self.op.ne[0] if self.source_format else 1

    @cached_property
    def source_row_bytes(self) -> int:
        return self.source_format.row_bytes(self.op.read.ne[0]) if self.source_format else 1

    @cached_property
    def target_row_bytes(self) -> int:
        target = self.source_format if self.is_copy else FORMATS[self.op.to_type]
        return target.row_bytes(self.columns) if target else 1

    @cached_property
    def row_ranges(self) -> list[tuple[int, int]]:
        """The rows of the input that stay, as half-open ranges."""
        kept = self.op.slice
        if kept is None or kept.dimension == 0:
            return [(0, self.op.read.nbytes // self.source_row_bytes)]
        ne = self.op.read.ne
        rows, size = prod(ne[1 : kept.dimension]), ne[kept.dimension]
        outer = range(prod(ne[kept.dimension + 1 :]))
        return [((i * size + start) * rows, (i * size + end) * rows) for i in outer for start, end in kept.keep]

    @cached_property
    def n_rows(self) -> int:
        """Rows of the output."""
        return sum(stop - start for start, stop in self.row_ranges)

    @cached_property
    def column_ranges(self) -> tuple[tuple[int, int], ...]:
        """The columns of the input that stay; () for all of them."""
        kept = self.op.slice
        return kept.keep if kept is not None and kept.dimension == 0 else ()

    @cached_property
    def weights(self) -> Floats | None:
        """The importances as float32[n_matrices, columns], or None when there are none for this tensor.

        Raises SurgeonError when they do not fit the tensor.
        """
        if self.is_copy or self.imatrix is None or self.op.imatrix_name is None:
            return None
        weights = self.imatrix.weights(self.op.imatrix_name)
        ne = self.op.read.ne
        expected = ne[0] * (ne[2] if len(ne) > 2 else 1)
        if weights.size != expected:
            raise SurgeonError(
                f"{self.imatrix.path}: the entry of {self.op.imatrix_name} has {weights.size} values, the tensor needs "
                f"{expected}; collect the imatrix from this model"
            )
        return _columns(np.ascontiguousarray(weights, np.float32).reshape(-1, ne[0]), self.column_ranges)

    @cached_property
    def unseen(self) -> frozenset[int]:
        """The matrices (experts) that calibration never called, quantized as without an imatrix.

        llama-quantize (`compat`) gives all their values the same weight; so do types that cannot do without weights.
        """
        name = self.op.imatrix_name
        if self.imatrix is None or name is None or self.compat or self.op.to_type in REQUIRES_IMATRIX:
            return frozenset()
        ne = self.op.tensor.ne
        seen = self.imatrix.seen(name, ne[2] if len(ne) > 2 else 1)
        return frozenset(place for place, called in enumerate(seen.tolist()) if not called)

    @cached_property
    def row_memory(self) -> int:
        """Bytes of buffers per row."""
        gathered = self.target_row_bytes if self.column_ranges else 0
        return self.source_row_bytes + gathered + (0 if self.is_copy else self.target_row_bytes + 4 * self.columns)

    def release(self) -> None:
        """Forget the importances: the tensor is done."""
        self.__dict__.pop("weights", None)

    @property
    def _place(self) -> str:
        """How messages begin."""
        return f"{self.file.paths[self.op.read.info.shard]}: tensor {self.op.source!r}"

    def slabs(self, memory: int) -> Iterator[Slab]:
        """The slabs in order, each with at most `memory` bytes of buffers, but at least one row."""
        self.slab_rows = max(1, min(self._preferred_rows, memory // self.row_memory))
        yield from self._slabs_of(self.slab_rows)

    def _slabs_of(self, at_most: int) -> Iterator[Slab]:
        """Every matrix of an expert tensor has importances of its own, so no slab spans two of them."""
        per_matrix = prod(self.op.read.ne[1:2]) if self._differs_by_matrix else 0
        target = 0
        for start, stop in self.row_ranges:
            first = start
            while first < stop:
                matrix = first // per_matrix if per_matrix else 0
                end = min(first + at_most, stop, (matrix + 1) * per_matrix if per_matrix else stop)
                rows = end - first
                yield Slab(first, rows, target, matrix, rows * self.source_row_bytes, rows * self.row_memory)
                first, target = end, target + rows

    @property
    def _differs_by_matrix(self) -> bool:
        if self.feedback_input is not None and self.matrices > 1:
            return True
        return self.weights is not None and len(self.weights) > 1

    @property
    def _preferred_rows(self) -> int:
        """Of a slab, where memory allows."""
        if self.is_copy:
            return SLAB_BYTES // self.source_row_bytes
        if self.feedback_input is not None:
            rows = feedback_encoder.ROWS
            return max(1, feedback_encoder.SLAB_ELEMENTS // self.columns // rows) * rows
        return (CODEBOOK_SLAB_ELEMENTS if self.op.to_type in USES_CODEBOOK else SLAB_ELEMENTS) // self.columns

    @property
    def checksum(self) -> Checksum:
        """Of what was written, once all of it is."""
        return Checksum(self.slab_rows, self.total)

    def checksum_of_output(self, slab_rows: int) -> Checksum:
        """The same of what the output holds now, slab by slab as it was written; raises OSError."""
        total = 0
        for slab in self._slabs_of(max(1, min(slab_rows, self._preferred_rows))):
            data = os.pread(self.output.fd, slab.rows * self.target_row_bytes, self._place_of(slab))
            total += slab_hash(data, slab)
        self.release()
        return Checksum(slab_rows, total % HASHES)

    def key(self, slab: Slab) -> Key | None:
        """The second moments that this slab is written by, None for the stock encoder."""
        if self.feedback is None or self.feedback_input is None:
            return None
        key = self.feedback_input, slab.matrix
        return key if self.feedback.is_usable(key) else None

    def sample(self, matrix: int, count: int) -> Floats:
        """At most `count` rows of a matrix, evenly spread, float32[n, columns]."""
        rows = prod(self.op.read.ne[1:2])
        chosen = np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64)) + matrix * rows
        blocks = np.empty((len(chosen), self.source_row_bytes), np.uint8)
        for place, row in enumerate(chosen):
            self.file.read_into(self.op.read.info, int(row) * self.source_row_bytes, blocks[place])
        self._check_source(Slab(int(chosen[0]), len(chosen), 0, matrix, blocks.nbytes, 0), blocks)
        return self._as_float32(Slab(0, len(chosen), 0, matrix, 0, 0), blocks, Buffers())

    def run(self, slab: Slab, buffers: Buffers, writing: threading.Lock) -> int:
        """Read, check, convert, check and write one slab; returns a hash of what was written.

        writing: held while the file is written to; whoever keeps it from this thread keeps it from the file.
        Raises SurgeonError naming the file and the tensor.
        """
        blocks = buffers.source(slab.source_bytes)
        self.file.read_into(self.op.read.info, slab.first * self.source_row_bytes, blocks)
        blocks = blocks.reshape(slab.rows, self.source_row_bytes)
        self._check_source(slab, blocks)
        blocks = self._kept_columns(blocks)
        if self.op.scale is not None:
            blocks.view(np.float32)[...] *= np.float32(self.op.scale)
        if not self.is_copy:
            blocks = self._converted(slab, blocks, buffers)
        data = blocks.data.cast("B")
        digest = slab_hash(data, slab)  # while it is in the processor's cache
        try:
            with writing:
                self.output.pwrite(data, self._place_of(slab))
        except OSError as error:
            raise write_error(self.output, error, self.op.name) from None
        return digest

    def _place_of(self, slab: Slab) -> int:
        """Where its first row lies in the output file, in bytes."""
        return self.offset + slab.target * self.target_row_bytes

    def _kept_columns(self, blocks: Bytes) -> Bytes:
        """The blocks without those of pruned layers; `resolve` allows that only where layers end between blocks."""
        if not self.column_ranges or self.source_format is None:
            return blocks
        block, nbytes = self.source_format.block, self.source_format.block_bytes
        return _columns(
            blocks, tuple((start // block * nbytes, end // block * nbytes) for start, end in self.column_ranges)
        )

    def _converted(self, slab: Slab, blocks: Bytes, buffers: Buffers) -> Bytes:
        rows = self._as_float32(slab, blocks, buffers)
        out = buffers.output(slab.rows * self.target_row_bytes).reshape(slab.rows, self.target_row_bytes)
        weights = None if self.weights is None or slab.matrix in self.unseen else self.weights[slab.matrix]
        try:
            key = self.key(slab)
            if key is None or self.feedback is None:
                surgeon_kernels.quantize_into(rows, self.op.to_type, out, weights, compat=self.compat)
            else:
                out[:] = self.feedback.encoded(key, rows, self.op.to_type, weights)
        except ValueError as error:
            raise SurgeonError(
                f"{self._place}, rows from {slab.first}: cannot become {self.op.to_type}: {error}"
            ) from None
        row = surgeon_kernels.first_invalid(out, self.op.to_type)
        if row >= 0:
            raise SurgeonError(
                f"{self._place} row {slab.first + row}: its values are too large for {self.op.to_type}, infinity or "
                f"NaN came out; give it a wider type, for instance --tensor-type '{self.op.source}=bf16'"
            )
        return out

    def _as_float32(self, slab: Slab, blocks: Bytes, buffers: Buffers) -> Floats:
        if self.op.from_type == "F32":
            floats: Floats = blocks.view(np.float32)
            return floats
        rows = buffers.floats(slab.rows * self.columns).reshape(slab.rows, self.columns)
        surgeon_kernels.dequantize_into(blocks, self.op.from_type, rows)
        return rows

    def _check_source(self, slab: Slab, blocks: Bytes) -> None:
        if self.source_format is None:
            return  # nobody knows what would be wrong in it
        row = surgeon_kernels.first_invalid(blocks, self.source_format.name)
        if row >= 0:
            raise SurgeonError(
                f"{self._place} row {slab.first + row} holds NaN or infinity; the model is damaged, download or "
                "convert it again"
            )
