"""Importance matrices: what llama-imatrix measured at the input of every matrix multiplication.

Two formats, detected from the content. GGUF holds, per weight W, `W.in_sum2` (sums of squared activations, one row per
matrix) and `W.counts` (rows of activations seen, one per matrix). The older .dat holds means multiplied by a number of
calls:

    i32 entries | per entry: i32 length, name, i32 calls, i32 values, f32 x values | i32 last chunk
    | i32 length, dataset
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import SurgeonError
from surgeon.model.layer_names import with_layer

DEFAULT_CHUNK_SIZE = 512  # tokens; what llama-imatrix assumes for the old format, which does not say
SUMS, COUNTS = ".in_sum2", ".counts"


class ImatrixError(SurgeonError):
    """An importance matrix that cannot be read or does not fit: file, entry, what was found, remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class ImatrixEntry:
    """What is known about the input of one weight.

    sums: float32[n_mat, n_per_mat], raw sums of squares (old format: means times calls); counts: int64[n_mat], rows of
    activations seen (old format: int64[1], the number of calls). n_mat is 1 except for experts.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Imatrix:
    """entries: weight name -> entry, names in stored order; chunk_count: 0 when unknown; is_legacy: read from .dat.

    bad: name -> why, of entries that are in the file and cannot be used; they are not in `entries`.
    """

    path: Path
    entries: dict[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = DEFAULT_CHUNK_SIZE
    is_legacy: bool = False
    bad: dict[str, str] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of values of each entry."""
        return {name: entry.sums.size for name, entry in self.entries.items()}

    def weights(self, name: str) -> NDArray[np.float32]:
        """float32[n_mat * n_per_mat]: the mean squares llama-quantize weighs errors by (1.0 for an unseen matrix).

        The single float32 division decides later rounding, so it is made exactly where llama-quantize makes it.
        """
        entry = self.entries[name]
        if self.is_legacy:
            calls = int(entry.counts[0])
            return (entry.sums / np.float32(calls) if calls > 0 else entry.sums.copy()).ravel()
        counts = entry.counts.astype(np.float32)[:, None]
        means = np.ones_like(entry.sums)
        np.divide(entry.sums, counts, out=means, where=counts > 0)
        return means.ravel()

    def seen(self, name: str, matrices: int = 1) -> NDArray[np.bool_]:
        """bool[matrices]: for which of a weight's matrices (experts) there is data.

        The old format has one count for all of them; there a matrix whose values are all 0 counts as never called.
        """
        key = (name, matrices)
        if key not in self._seen:
            entry = self.entries[name]
            if len(entry.counts) == matrices:
                found: NDArray[np.bool_] = np.asarray(entry.counts > 0)
            elif self.is_legacy:
                found = np.asarray(entry.sums.reshape(matrices, -1).any(axis=1))
            else:
                found = np.full(matrices, bool(entry.counts.max(initial=0) > 0))
            self._seen[key] = found
        return self._seen[key]

    @cached_property
    def _seen(self) -> dict[tuple[str, int], NDArray[np.bool_]]:
        return {}

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
        """Only entries whose name contains one of `include` (if any is given) and none of `exclude`."""

        def wanted(name: str) -> bool:
            return (not include or any(part in name for part in include)) and not any(part in name for part in exclude)

        return replace(
            self,
            entries={name: entry for name, entry in self.entries.items() if wanted(name)},
            bad={name: why for name, why in self.bad.items() if wanted(name)},
        )

    def renumbered(self, mapping: dict[int, int]) -> Imatrix:
        """Layers renamed old -> new; entries of layers that are not in `mapping` (the pruned ones) are left out."""
        named = ((with_layer(name, mapping), entry) for name, entry in self.entries.items())
        return replace(self, entries={name: entry for name, entry in named if name is not None})

    def with_matrices(self, kept: Mapping[str, tuple[tuple[tuple[int, int], ...], int]]) -> Imatrix:
        """Entries of experts that are pruned left out. kept: name -> (half-open ranges that stay, matrices there were).

        An entry of another size than its tensor is left as it is.
        """
        entries = dict(self.entries)
        for name, (ranges, count) in kept.items():
            entry = entries.get(name)
            if entry is None or entry.sums.size % count or len(entry.counts) not in (1, count):
                continue
            chosen = np.concatenate([np.arange(start, end) for start, end in ranges])
            rows = entry.sums.reshape(count, -1)[chosen].reshape(len(chosen) if len(entry.sums) > 1 else 1, -1)
            entries[name] = ImatrixEntry(rows, entry.counts if len(entry.counts) == 1 else entry.counts[chosen])
        return replace(self, entries=entries)

    def raw_sums(self) -> Imatrix:
        """The same in the sense of the GGUF format; an old-format matrix is expanded by its chunk size."""
        if not self.is_legacy:
            return self
        size = self.chunk_size
        with np.errstate(over="ignore"):  # infinity is refused where a matrix is saved
            entries = {
                name: ImatrixEntry(entry.sums * np.float32(size), entry.counts * size)
                for name, entry in self.entries.items()
            }
        return replace(self, entries=entries, chunk_count=_chunks(entries, size), is_legacy=False)


def merge(imatrices: Iterable[Imatrix]) -> Imatrix:
    """Add up sums and counts of several matrices, as llama-imatrix does for repeated `--in-file`.

    Raises ImatrixError when an entry has another size in one of them, ValueError when there is nothing to merge.
    """
    parts = list(imatrices)
    if not parts:
        raise ValueError("nothing to merge")
    size = next((part.chunk_size for part in parts if not part.is_legacy), parts[0].chunk_size)
    total: dict[str, ImatrixEntry] = {}
    for part in parts:
        expanded = replace(part, chunk_size=size).raw_sums() if part.is_legacy else part
        for name, entry in expanded.entries.items():
            total[name] = _added(total[name], entry, name, part.path) if name in total else entry
    datasets = tuple(dataset for part in parts for dataset in part.datasets)
    return Imatrix(parts[0].path, total, datasets, _chunks(total, size), size)


def _added(into: ImatrixEntry, entry: ImatrixEntry, name: str, path: Path) -> ImatrixEntry:
    n_mat = max(len(into.counts), len(entry.counts))
    fits = all(len(e.counts) in (1, n_mat) for e in (into, entry))
    if into.sums.size != entry.sums.size or not fits:
        raise ImatrixError(
            f"{path}: {name} has {entry.sums.size} values and {len(entry.counts)} counts, "
            f"the files before have {into.sums.size} and {len(into.counts)}; merge matrices of one model only"
        )
    counts = np.broadcast_to(into.counts, n_mat) + np.broadcast_to(entry.counts, n_mat)
    with np.errstate(over="ignore"):
        return ImatrixEntry(into.sums.reshape(n_mat, -1) + entry.sums.reshape(n_mat, -1), counts)


def _chunks(entries: dict[str, ImatrixEntry], chunk_size: int) -> int:
    most = max((int(entry.counts.max()) for entry in entries.values()), default=0)
    return min(max(most // max(chunk_size, 1), 0), 2**32 - 1)  # the file has a uint32 for it
