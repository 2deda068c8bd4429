"""What an importance matrix says about each tensor and layer: the figures of `llama-imatrix --show-statistics`.

All arithmetic is float32, added up one by one in stored order, as there, so the figures agree to the last bit; only
log2 is the platform's, which may round the last bit of an entropy otherwise. `a` below are the mean squared
activations per channel (experts that were never chosen left out), `S` their sum, `n` their number.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.model.layer_names import BLOCK

Floats = NDArray[np.float32]

INACTIVE = np.float32(1e-5)  # a channel at or below counts as never active


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """The statistics of one tensor's input.

    layer: N of `blk.N.`, None outside; tensor: the short name (`ffn_down`); name: the full one.
    sum_bias: S = sum a (called Σ(Bias), in newer llama.cpp Σ(Act²)); min, max, mean, std: of a (std over n);
    active: share of a above 1e-5, 0..1; n: len(a); entropy: -sum p log2 p with p = a / S, bits;
    entropy_norm: entropy in percent of log2 n; zd: share of a more than one std above the mean, 0..1;
    cossim: cosine between the raw sums and those of the same tensor one layer before: None without such a tensor,
    NaN when one of them is all zero or their lengths differ.
    """

    layer: int | None
    tensor: str
    name: str
    sum_bias: float
    min: float
    max: float
    mean: float
    std: float
    active: float
    n: int
    entropy: float
    entropy_norm: float
    zd: float
    cossim: float | None


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Averages over a layer's tensors, weighted by their n. cossim is None when no tensor has a predecessor."""

    layer: int
    sum_bias: float
    zd: float
    cossim: float | None


def tensor_statistics(imatrix: Imatrix) -> list[TensorStatistics]:
    """One row per tensor, by short name, largest Σ(Bias) first; tensors whose input was never seen have none."""
    # The old format counts calls, not tokens. Expanding it by a power of two, as llama-imatrix does, changes no figure.
    entries = imatrix.raw_sums().entries
    with np.errstate(all="ignore"):  # sums near the end of float32 become infinite, as they do there
        rows = _rows(entries)
    return sorted(rows, key=lambda row: (row.tensor, -row.sum_bias, -1 if row.layer is None else row.layer, row.name))


def _rows(entries: dict[str, ImatrixEntry]) -> list[TensorStatistics]:
    lengths = {name: _sequential_sum(np.square(_flat(entry))) for name, entry in entries.items()}
    rows = []
    for name, entry in entries.items():
        a = _means(entry)
        if len(a):
            before = _predecessor(name)
            cossim = None if before not in entries else _cosine(entries, lengths, name, before)
            rows.append(_row(name, a, cossim))
    return rows


def layer_statistics(rows: Iterable[TensorStatistics]) -> list[LayerStatistics]:
    """One row per layer, ascending, from the rows of `tensor_statistics` in their order."""
    layers: dict[int, list[TensorStatistics]] = defaultdict(list)
    for row in rows:
        if row.layer is not None:
            layers[row.layer].append(row)
    with np.errstate(all="ignore"):
        return [_layer_row(layer, layers[layer]) for layer in sorted(layers)]


def shared_inputs(imatrix: Imatrix) -> dict[str, tuple[str, ...]]:
    """Weight name -> the other weights that read the same activations, as attn_q, attn_k and attn_v do.

    Known from the data: their sums and counts are equal bit for bit. Names without company are not in the result.
    """
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name, entry in imatrix.entries.items():
        digest = hashlib.blake2b(str((split_name(name)[0], entry.sums.shape)).encode())
        digest.update(entry.counts.tobytes())
        digest.update(entry.sums.tobytes())
        groups[digest.digest()].append(name)
    return {
        name: tuple(other for other in names if other != name)
        for names in groups.values()
        if len(names) > 1
        for name in names
    }


def split_name(name: str) -> tuple[int | None, str]:
    """Layer and short name as llama-imatrix takes them: the part after `blk` and the one before `weight`."""
    parts = name.split(".")
    layer = parts[parts.index("blk") + 1] if "blk" in parts[:-1] else ""
    short = parts[parts.index("weight") - 1] if "weight" in parts[1:] else name
    return int(layer) if layer.isascii() and layer.isdigit() else None, short


def _predecessor(name: str) -> str:
    """The same tensor one layer before; '' for layer 0 and outside blocks."""
    match = BLOCK.search(name)
    if match is None or int(match[1]) == 0:
        return ""
    return f"{name[: match.start()]}blk.{int(match[1]) - 1}.{name[match.end() :]}"


def _flat(entry: ImatrixEntry) -> Floats:
    return entry.sums.reshape(-1)


def _means(entry: ImatrixEntry) -> Floats:
    seen = entry.counts != 0
    return np.asarray(entry.sums[seen] / entry.counts[seen].astype(np.float32)[:, None]).reshape(-1)


def _sequential_sum(values: Floats) -> np.float32:
    """Float32 sum from first to last; `numpy.sum` adds pairwise and rounds otherwise."""
    return np.float32(np.add.accumulate(values, dtype=np.float32)[-1])


def _cosine(entries: dict[str, ImatrixEntry], lengths: dict[str, np.float32], name: str, before: str) -> float:
    this, previous = _flat(entries[name]), _flat(entries[before])
    if len(this) != len(previous):
        return math.nan
    return float(_sequential_sum(this * previous) / (np.sqrt(lengths[name]) * np.sqrt(lengths[before])))


def _row(name: str, a: Floats, cossim: float | None) -> TensorStatistics:
    layer, short = split_name(name)
    n = np.float32(len(a))
    total = _sequential_sum(a)
    mean = total / n
    std = np.sqrt(max(np.float32(0), _sequential_sum(a * a) / n - mean * mean))
    above = np.count_nonzero((a - mean) / std > 1) if std > 0 else 0
    inactive = np.float32(np.count_nonzero(np.abs(a) <= INACTIVE))
    entropy = _entropy(a, total)
    return TensorStatistics(
        layer=layer,
        tensor=short,
        name=name,
        sum_bias=float(total),
        min=float(a.min()),
        max=float(a.max()),
        mean=float(mean),
        std=float(std),
        active=float(np.float32(1) - inactive / n),
        n=len(a),
        entropy=float(entropy),
        entropy_norm=float(np.float32(100 * float(entropy) / math.log2(len(a)))) if len(a) > 1 else 0.0,
        zd=float(np.float32(above) / n),
        cossim=cossim,
    )


def _entropy(a: Floats, total: np.float32) -> np.float32:
    """Bits; 0 when nothing was active."""
    if not total > 0:
        return np.float32(0)
    p = a / total
    p = p[p > 0]
    return _sequential_sum(-(p * np.log2(p))) if len(p) else np.float32(0)


def _layer_row(layer: int, rows: list[TensorStatistics]) -> LayerStatistics:
    n = np.array([row.n for row in rows], np.float32)
    total = np.float32(sum(row.n for row in rows))

    def average(values: list[float]) -> float:
        return float(_sequential_sum(n * np.array(values, np.float32)) / total)

    # As in llama-imatrix a tensor without a predecessor counts as 0 in its layer's average.
    known = any(row.cossim is not None for row in rows)
    return LayerStatistics(
        layer=layer,
        sum_bias=average([row.sum_bias for row in rows]),
        zd=average([row.zd for row in rows]),
        cossim=average([row.cossim or 0.0 for row in rows]) if known else None,
    )
