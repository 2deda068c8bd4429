"""Scores of a layer that its weights alone give, no text needed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from surgeon.model.model import Layer, Model, Tensor

_SLAB_ELEMENTS = 1 << 22
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def layer_zd(model: Model, layer: Layer) -> float:
    """Share of the layer's weights whose z-score is above 1 (Layer-wise quantization, arXiv 2406.17415, ZD).

    All matrices of the layer together are one population; vectors (norms, biases) are left out. NaN without matrices
    of a readable type.
    """
    tensors = [tensor for tensor in layer.tensors if len(tensor.ne) > 1 and _readable(tensor)]
    count, total, squares = 0, 0.0, 0.0
    for values in _slabs(model, tensors):
        count += values.size
        total += float(values.sum(dtype=np.float64))
        squares += float(np.einsum("i,i->", values, values, dtype=np.float64))
    if count == 0:
        return math.nan
    mean = total / count
    deviation = math.sqrt(max(0.0, squares / count - mean * mean))
    if deviation == 0:
        return 0.0
    return sum(int(np.count_nonzero(values > mean + deviation)) for values in _slabs(model, tensors)) / count


def weight_zd(model: Model) -> Iterator[tuple[int, float]]:
    """(layer, its score) for every layer, one after the other."""
    for layer in model.layers:
        yield layer.index, layer_zd(model, layer)


def _readable(tensor: Tensor) -> bool:
    from surgeon_kernels import dequantizable

    return tensor.type_name in _PLAIN or tensor.type_name in dequantizable


def _slabs(model: Model, tensors: list[Tensor]) -> Iterator[NDArray[np.float32]]:
    """The values of all tensors, flat, a slab of rows at a time."""
    for tensor in tensors:
        raw = model.file.data(tensor.info).reshape(tensor.info.n_rows, -1)
        step = max(1, _SLAB_ELEMENTS // tensor.ne[0])
        for start in range(0, len(raw), step):
            yield _values(raw[start : start + step], tensor.type_name).ravel()


def _values(blocks: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    if type_name in _PLAIN:
        return np.ascontiguousarray(blocks).view(_PLAIN[type_name]).astype(np.float32)
    from surgeon_kernels import dequantize

    values: NDArray[np.float32] = dequantize(np.ascontiguousarray(blocks), type_name)
    return values
