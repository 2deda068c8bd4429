"""What one pass over a text yields beyond an importance matrix, kept in the same GGUF file.

llama-quantize pairs tensors by the ends of their names and ignores all others, so these may lie beside them:

    W.in_sum         F32 [cols, n_mat]   raw sums of the activations; divided by the counts: the mean of every channel
    surgeon.layers   F32 [5, n_layer]    per layer Σ cos(x, y), Σ x·y, Σ |x|², Σ |y|², tokens
    surgeon.weight_zd F32 [n_layer]      share of the layer's weights with a z-score above 1
    surgeon.expert_*  F32 [n_expert, n_layer]  what became of each expert (see `surgeon.imatrix.experts`)

where x and y are the residual stream before and after the layer.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from surgeon.gguf.file import GGUFFile, Value, ValueType, open_gguf
from surgeon.gguf.header import DEFAULT_ALIGNMENT
from surgeon.gguf.layout import Entry, header
from surgeon.imatrix.experts import EXPERT_TENSORS, ExpertSums, added
from surgeon.imatrix.imatrix import COUNTS, SUMS, Imatrix, merge
from surgeon.whole_files import write_whole
from surgeon.write_guard import NEW, Kind, Permit
from surgeon_kernels.formats import FORMATS

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
CHANNEL_SUMS, LAYERS, WEIGHT_ZD = ".in_sum", "surgeon.layers", "surgeon.weight_zd"
_F32 = FORMATS["F32"].number
_NUMBERS = {"<f4": _F32, "<f8": FORMATS["F64"].number, "<i8": FORMATS["I64"].number}
_NO_ARRAYS: Mapping[str, NDArray[np.generic]] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Influence:
    """channel_sums: weight name -> float32[n_mat, cols]; layers: float64[n_layer, 5]; weight_zd: float64[n_layer];
    experts: of a model that has some.

    Layers that were not seen give NaN.
    """

    layers: Float64
    channel_sums: dict[str, Float32] = field(default_factory=dict)
    weight_zd: Float64 | None = None
    experts: ExpertSums | None = None

    def pruned(self, layers: Sequence[int], gone: Mapping[int, Collection[int]]) -> Influence:
        """Of a model that keeps these layers, in this order, and loses these experts of each, as measured on the whole.

        Channel sums are left out, and so are the scores of the weights where experts go.
        """
        seen = [layer for layer in layers if layer < len(self.layers)]
        zd = None if self.weight_zd is None or gone else self.weight_zd[seen]
        experts = None if self.experts is None else self.experts.pruned(seen, gone)
        return Influence(self.layers[seen], {}, zd, experts)

    @property
    def block_influence(self) -> Float64:
        """1 − mean cosine of the residual stream before and after each layer (ShortGPT, arXiv 2403.03853, eq. 1)."""
        return 1 - _ratio(self.layers[:, 0], self.layers[:, 4])

    @property
    def layer_input_modification(self) -> Float64:
        """−(x·y)/(|x||y|) over all tokens as one vector (Layer-wise quantization, arXiv 2406.17415, LIM)."""
        norms = np.sqrt(self.layers[:, 2] * self.layers[:, 3])
        return -_ratio(self.layers[:, 1], norms)


def _ratio(above: Float64, below: Float64) -> Float64:
    out = np.full_like(above, np.nan, dtype=np.float64)
    np.divide(above, below, out=out, where=below > 0)
    return out


def load_influence(path: str | os.PathLike[str], *, channels: bool = True) -> Influence | None:
    """What the file holds beyond its matrix, or None (llama-imatrix's own files, the old format). Raises GGUFError.

    channels=False leaves the channel sums on the disk: of many experts they are gigabytes.
    """
    with Path(path).open("rb") as file:
        if file.read(4) != b"GGUF":
            return None
    with open_gguf(path) as gguf:
        names = {info.name: info for info in gguf.tensors if info.type_id == _F32}
        if LAYERS not in names or names[LAYERS].ne[0] != 5:
            return None
        layers = _floats(gguf, LAYERS).reshape(-1, 5).astype(np.float64)
        zd = _floats(gguf, WEIGHT_ZD).astype(np.float64) if WEIGHT_ZD in names else None
        sums = {
            name.removesuffix(CHANNEL_SUMS): _floats(gguf, name).reshape(-1, info.ne[0])
            for name, info in names.items()
            if channels and name.endswith(CHANNEL_SUMS)
        }
        experts = None
        if set(EXPERT_TENSORS) <= names.keys() and len({names[name].ne for name in EXPERT_TENSORS}) == 1:
            found = [_floats(gguf, name).reshape(-1, names[name].ne[0]) for name in EXPERT_TENSORS]
            experts = ExpertSums(*(values.astype(np.float64) for values in found))
        return Influence(layers, sums, zd, experts)


def _floats(gguf: GGUFFile, name: str) -> Float32:
    info = next(info for info in gguf.tensors if info.name == name)
    values = np.empty(info.n_elements, "<f4")
    gguf.read_into(info, 0, values)
    return values.astype(np.float32, copy=False)


def save(
    imatrix: Imatrix,
    influence: Influence | None,
    path: str | os.PathLike[str],
    extra: tuple[tuple[str, Value], ...] = (),
    permit: Permit = NEW,
    more: Mapping[str, NDArray[np.generic]] = _NO_ARRAYS,
) -> None:
    """Write an importance matrix with what belongs to it; `extra`: further key-value pairs; `more`: further tensors,
    float32, float64 or int64 as they are. Raises SurgeonError.
    """
    write_whole(Path(path), file_bytes(imatrix, influence, extra, more), Kind.IMATRIX, permit)


def file_bytes(
    imatrix: Imatrix,
    influence: Influence | None,
    extra: tuple[tuple[str, Value], ...] = (),
    more: Mapping[str, NDArray[np.generic]] = _NO_ARRAYS,
) -> bytes:
    """The GGUF file that `save` writes."""
    tensors: list[tuple[str, NDArray[np.generic]]] = [
        pair for name in sorted(imatrix.entries, key=str.encode) for pair in _entry(imatrix, influence, name)
    ]
    if influence is not None:
        tensors.append((LAYERS, influence.layers.astype(np.float32)))
        if influence.weight_zd is not None:
            tensors.append((WEIGHT_ZD, influence.weight_zd.astype(np.float32)))
        if influence.experts is not None:
            tensors += influence.experts.tensors()
    tensors += more.items()
    entries = [
        Entry(name, tuple(reversed(values.shape)), _NUMBERS[values.dtype.str], values.nbytes)
        for name, values in tensors
    ]
    layout = header([*_metadata(imatrix), *extra], entries, DEFAULT_ALIGNMENT)
    out = bytearray(layout.total_bytes)
    out[: len(layout.data)] = layout.data
    for (_, values), offset in zip(tensors, layout.offsets, strict=True):
        out[offset : offset + values.nbytes] = values.tobytes()
    return bytes(out)


def _entry(imatrix: Imatrix, influence: Influence | None, name: str) -> list[tuple[str, Float32]]:
    entry = imatrix.entries[name]
    pairs = [(name + SUMS, entry.sums), (name + COUNTS, entry.counts.astype(np.float32)[:, None])]
    if influence is not None and name in influence.channel_sums:
        pairs.append((name + CHANNEL_SUMS, influence.channel_sums[name]))
    return pairs


def _metadata(imatrix: Imatrix) -> list[tuple[str, Value]]:
    return [
        ("general.type", Value.of(ValueType.STRING, "imatrix")),
        ("imatrix.datasets", Value.array(ValueType.STRING, imatrix.datasets)),
        ("imatrix.chunk_count", Value.of(ValueType.UINT32, imatrix.chunk_count)),
        ("imatrix.chunk_size", Value.of(ValueType.UINT32, imatrix.chunk_size)),
    ]


def merged(parts: list[tuple[Imatrix, Influence | None]]) -> tuple[Imatrix, Influence | None]:
    """Several collections as one. Channel sums survive only where every part has them, so that the means stay true.

    Raises ImatrixError where the parts belong to different models.
    """
    imatrix = merge(part for part, _ in parts)
    found = [influence for _, influence in parts if influence is not None]
    if not found or len({influence.layers.shape for influence in found}) != 1:
        return imatrix, None
    layers = np.sum([influence.layers for influence in found], axis=0)
    channels: dict[str, Float32] = {}
    if len(found) == len(parts):
        for name in set.intersection(*(set(influence.channel_sums) for influence in found)):
            holders = sum(name in part.entries for part, _ in parts)
            if holders == len(parts):
                channels[name] = np.sum([influence.channel_sums[name] for influence in found], axis=0, dtype=np.float32)
    zd = next((influence.weight_zd for influence in found if influence.weight_zd is not None), None)
    return imatrix, Influence(layers, channels, zd, added([influence.experts for influence in found]))


def with_weight_zd(influence: Influence, weight_zd: Float64) -> Influence:
    """The same with the weights' scores."""
    return replace(influence, weight_zd=weight_zd)
