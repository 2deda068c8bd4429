"""The nodes of llama.cpp's compute graph, as the eval callback sees them."""

from __future__ import annotations

import ctypes as c

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.layouts import GgmlTensor
from surgeon.engine.errors import EngineError

GGML_TYPE_F32, GGML_TYPE_I32 = 0, 26
_DTYPES: dict[int, type[np.generic]] = {GGML_TYPE_F32: np.float32, GGML_TYPE_I32: np.int32}


class Node:
    """One ggml_tensor of the running graph; valid only inside the callback that was given its address."""

    __slots__ = ("address", "binding", "tensor")

    def __init__(self, binding: Binding, address: int) -> None:
        self.binding, self.address = binding, address
        self.tensor = GgmlTensor.from_address(address)

    @property
    def name(self) -> str:
        raw: bytes = self.tensor.name
        return raw.decode(errors="replace")

    @property
    def weight_name(self) -> str:
        """The name without what a copy to another back end adds: `CUDA0#blk.0.attn_q.weight#0` -> the middle."""
        parts = self.name.split("#")
        return parts[1] if len(parts) > 1 else parts[0]

    @property
    def op(self) -> int:
        number: int = self.tensor.op
        return number

    @property
    def type(self) -> int:
        number: int = self.tensor.type
        return number

    @property
    def ne(self) -> tuple[int, int, int, int]:
        a, b, d, e = self.tensor.ne
        return a, b, d, e

    def source(self, index: int) -> Node | None:
        """The index-th operand."""
        address = self.tensor.src[index]
        return Node(self.binding, address) if address else None

    def array(self) -> NDArray[np.generic]:
        """The values, shape (ne3, ne2, ne1, ne0): a view of host memory, or a copy from the device's."""
        if self.type not in _DTYPES:
            raise EngineError(f"{self.name}: the graph keeps it in ggml type {self.type}, not float32")
        base = self.binding.base
        nbytes: int = base.ggml_nbytes(c.byref(self.tensor))
        # Of a view, `buffer` is that of its owner.
        if base.ggml_backend_buffer_is_host(self.tensor.buffer):
            memory: c.Array[c.c_char] = (c.c_char * nbytes).from_address(self.tensor.data)
        else:
            memory = c.create_string_buffer(nbytes)
            base.ggml_backend_tensor_get(c.byref(self.tensor), memory, 0, nbytes)
        shape, strides = tuple(reversed(self.ne)), tuple(reversed(tuple(self.tensor.nb)))
        return np.ndarray(shape, _DTYPES[self.type], memoryview(memory), strides=strides)

    def overwrite(self, values: NDArray[np.float32]) -> None:
        """Put float32 values (of the node's own shape, contiguous) in the node's place before the next node runs."""
        if values.size != int(np.prod(self.ne)) or self.type != GGML_TYPE_F32:
            raise EngineError(f"{self.name}: has {self.ne} values of type {self.type}, not {values.shape} of float32")
        data = np.ascontiguousarray(values, np.float32)
        self.binding.base.ggml_backend_tensor_set(c.byref(self.tensor), data.ctypes.data, 0, data.nbytes)


def rows(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """(ne3, ne2, ne1, ne0) as float32 rows of ne0."""
    return values.astype(np.float32, copy=False).reshape(-1, values.shape[-1])
