"""Weights of a loaded model, exchanged for others of any type and put back.

A weight that is exchanged gets memory of its own, in a buffer of the kind it had, filled by ggml's own calls; its old
memory is not touched, be it mapped read-only or on a GPU. The graph is built from the model's tensors anew for every
context, so it runs with the type that stands there then, exactly as if the file had held it.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node
from surgeon.engine.child.llama.layouts import GgmlTensor
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.child.llama.packed_buffers import PackedBuffers
from surgeon.engine.errors import EngineError

_USAGE_WEIGHTS = 1  # enum ggml_backend_buffer_usage


@dataclass(frozen=True)
class _Exchanged:
    """A tensor as it was, and the buffer that holds its replacement."""

    tensor: GgmlTensor
    before: bytes
    buffer: int


class WeightExchange:
    """The weights of `model` by name; a context made after `swap` runs with the new ones, until `restore`.

    unused: exchanged weights that the graph does not read; inexact: those that are both looked up and multiplied (token
    embeddings that are the head too) of a type that llama.cpp would have loaded twice, the second time packed: their
    products are rounded in another order than a file's.
    """

    def __init__(self, model: LlamaModel, threads: int) -> None:
        self._model, self._base = model, model.binding.base
        self._uses = _weight_uses(model, threads)
        self._packed = PackedBuffers(model.binding)
        self._exchanged: list[_Exchanged] = []
        self.unused: list[str] = []
        self.inexact: list[str] = []

    def swap(self, name: str, type_number: int, data: NDArray[np.uint8]) -> None:
        """Exchange one weight (all its copies: a tied head may be one). data: its blocks, row after row.

        A weight that the graph does not use (of multi-token prediction) goes to `unused`. Raises EngineError for one
        that is only there as a copy on another device, a wrong number of bytes, or too little memory.
        """
        uses = self._uses.get(name)
        if uses is None:
            self.unused.append(name)
            return
        if not uses:
            raise EngineError(f"{name}: is copied between devices while the model runs; take another -ngl")
        for address, operations in uses.items():
            self._exchange(name, GgmlTensor.from_address(address), operations, type_number, np.ascontiguousarray(data))

    def restore(self) -> None:
        """Put every weight back. The contexts that used the new ones must be closed."""
        for one in reversed(self._exchanged):
            c.memmove(c.byref(one.tensor), one.before, len(one.before))
            self._base.ggml_backend_buffer_free(one.buffer)
        self._exchanged.clear()
        self.unused, self.inexact = [], []

    def _exchange(
        self, name: str, tensor: GgmlTensor, operations: set[int], type_number: int, data: NDArray[np.uint8]
    ) -> None:
        base, before = self._base, bytes(tensor)
        kind = base.ggml_backend_buffer_get_type(tensor.buffer)
        _retype(base, tensor, type_number)
        kind, present = self._packed.kind_for(tensor, kind, operations), kind
        multiplied = operations & self._packed.multiplications
        if multiplied < operations and multiplied and self._packed.kind_for(tensor, present, multiplied) != kind:
            self.inexact.append(name)
        if base.ggml_nbytes(c.byref(tensor)) != data.nbytes:
            expected = base.ggml_nbytes(c.byref(tensor))
            c.memmove(c.byref(tensor), before, len(before))
            raise EngineError(f"{name}: {data.nbytes} bytes were sent for it, llama.cpp expects {expected}")
        tensor.buffer, tensor.data, tensor.extra = None, None, None
        buffer = base.ggml_backend_buft_alloc_buffer(kind, base.ggml_backend_buft_get_alloc_size(kind, c.byref(tensor)))
        if not buffer:
            c.memmove(c.byref(tensor), before, len(before))
            raise EngineError(f"{name}: no memory for {data.nbytes} bytes of exchanged weights; lower -ngl or --chunks")
        self._exchanged.append(_Exchanged(tensor, before, buffer))
        base.ggml_backend_buffer_set_usage(buffer, _USAGE_WEIGHTS)
        base.ggml_backend_tensor_alloc(buffer, c.byref(tensor), base.ggml_backend_buffer_get_base(buffer))
        base.ggml_backend_tensor_set(c.byref(tensor), data.ctypes.data, 0, data.nbytes)


def _retype(base: c.CDLL, tensor: GgmlTensor, type_number: int) -> None:
    """The type and with it the strides of a contiguous tensor."""
    tensor.type = type_number
    tensor.nb[0] = base.ggml_type_size(type_number)
    tensor.nb[1] = base.ggml_row_size(type_number, tensor.ne[0])
    tensor.nb[2] = tensor.nb[1] * tensor.ne[1]
    tensor.nb[3] = tensor.nb[2] * tensor.ne[2]


def _weight_uses(model: LlamaModel, threads: int) -> dict[str, dict[int, set[int]]]:
    """Name -> the tensors of that name that the graph of one token reads -> by which operations.

    Copies on other devices are left out.
    """
    found: dict[str, dict[int, set[int]]] = {}

    def watch(address: int, ask: bool) -> bool:
        if ask:
            for source in _sources(model.binding, address):
                if not source.weight_name.endswith("weight"):
                    continue
                known = found.setdefault(source.weight_name, {})
                if source.name == source.weight_name:
                    known.setdefault(source.address, set()).add(Node(model.binding, address).op)
        return not ask

    with opened(model, ContextSize(64, 1, 64, 64), threads, watch) as context:
        one = np.zeros(1, np.int32)
        context.decode(one, one, one, np.ones(1, np.bool_))
    return found


def _sources(binding: Binding, address: int) -> list[Node]:
    node = Node(binding, address)
    return [source for index in range(4) if (source := node.source(index)) is not None]
