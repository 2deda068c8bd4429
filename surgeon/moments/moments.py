"""Second moments of a model's inputs, as a file holds them; matrices are read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import SurgeonError
from surgeon.gguf.file import GGUFFile, TensorInfo
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.moments.triangle import Float16, Float32, packed_length, unpack

Int64 = NDArray[np.int64]
SUMS, CORRELATIONS, TOKENS = ".sum2", ".corr", ".tokens"


class MomentsError(SurgeonError):
    """A file of second moments that cannot be read or does not fit: file, input, what was found, remedy."""


@dataclass(frozen=True, eq=False)
class Input:
    """One input that one or several weights multiply.

    matrices: more than one where experts have inputs of their own; tokens: int64[matrices, halves], rows added up.
    """

    name: str
    columns: int
    matrices: int
    tokens: Int64


@dataclass(frozen=True)
class Head:
    """What a file says about itself.

    block: columns of the blocks along the diagonal, 0 for whole matrices; halves: 2 where alternate parts of the text
    are kept apart; model, model_name: identity and name of the model's file; datasets: the texts.
    """

    block: int
    halves: int
    model: str
    model_name: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int


@dataclass(frozen=True, eq=False)
class Moments:
    """inputs: name (of the first weight that multiplies it) -> Input; users: weight -> name of its input.

    digest: sha256 of all that the file holds on its inputs, which identifies a file whatever it is called.
    """

    path: Path
    head: Head
    inputs: dict[str, Input]
    users: dict[str, str]
    digest: str
    file: GGUFFile

    def of(self, weight: str) -> Input | None:
        """The input that `weight` multiplies, if the file has it."""
        name = self.users.get(weight)
        return None if name is None else self.inputs[name]

    def width(self, one: Input) -> int:
        """Columns of its widest block."""
        return min(one.columns, self.head.block or one.columns)

    def tokens_per_column(self, one: Input) -> NDArray[np.float64]:
        """float64[matrices]: rows seen over the columns of a block; few make a matrix that fits only its text."""
        ratios: NDArray[np.float64] = one.tokens.sum(axis=1) / np.float64(self.width(one))
        return ratios

    def blocks(self, one: Input, matrix: int = 0, half: int | None = None) -> list[Float32]:
        """E[x xᵀ] of one matrix, its blocks along the diagonal; of all tokens, or of one half of the text.

        Raises MomentsError where the file is damaged, or none of these tokens were seen.
        """
        halves = range(self.head.halves) if half is None else (half,)
        seen = int(one.tokens[matrix, list(halves)].sum())
        if seen == 0:
            raise MomentsError(f"{self.path}: no token was seen by matrix {matrix} of {one.name}")
        parts = [self.sums(one, matrix, number) for number in halves]
        total = parts[0]
        for part in parts[1:]:
            for into, more in zip(total, part, strict=True):
                into += more
        for square in total:
            square /= np.float32(seen)
        return total

    def sums(self, one: Input, matrix: int, half: int) -> list[Float32]:
        """Σ x xᵀ of one matrix and half, its blocks along the diagonal. Raises MomentsError."""
        packed = packed_length(one.columns, self.head.block)
        place = matrix * self.head.halves + half
        correlations: Float16 = np.empty(packed, "<f2")
        self._read(one.name + CORRELATIONS, place * packed * 2, correlations)
        if not (np.abs(correlations) <= 1).all():
            raise MomentsError(f"{self.path}: {one.name} holds what is not a correlation; collect it again")
        return unpack(self._diagonal(one, place), correlations, self.head.block)

    def squares(self, one: Input) -> Float32:
        """Σ x² float32[matrices, columns] of all tokens."""
        places = range(one.matrices * self.head.halves)
        sums = np.stack([self._diagonal(one, place) for place in places])
        total: Float32 = sums.reshape(one.matrices, self.head.halves, one.columns).sum(axis=1, dtype=np.float32)
        return total

    @cached_property
    def ratios(self) -> dict[str, tuple[float, ...]]:
        """`tokens_per_column` of every input, by its name."""
        return {name: tuple(map(float, self.tokens_per_column(one))) for name, one in self.inputs.items()}

    @cached_property
    def as_imatrix(self) -> Imatrix:
        """The importance matrix that the diagonals are."""
        entries: dict[str, ImatrixEntry] = {}
        made: dict[str, ImatrixEntry] = {}
        for weight, name in self.users.items():
            one = self.inputs[name]
            if name not in made:
                made[name] = ImatrixEntry(self.squares(one), one.tokens.sum(axis=1))
            entries[weight] = made[name]
        return Imatrix(self.path, entries, self.head.datasets, self.head.chunk_count, self.head.chunk_size)

    def _diagonal(self, one: Input, place: int) -> Float32:
        values: Float32 = np.empty(one.columns, "<f4")
        self._read(one.name + SUMS, place * values.nbytes, values)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise MomentsError(f"{self.path}: {one.name} holds what is not a sum of squares; collect it again")
        return values.astype(np.float32, copy=False)

    def _read(self, tensor: str, start: int, values: NDArray[np.generic]) -> None:
        info = self._infos[tensor]
        self.file.read_into(info, start, values.view(np.uint8))

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        return {info.name: info for info in self.file.tensors}
