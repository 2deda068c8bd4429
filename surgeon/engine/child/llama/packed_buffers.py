"""Buffers in which a processor keeps weights in an order of its own, chosen as llama.cpp's loader chooses them.

For some types (Q4_0, Q4_K, IQ4_NL … by processor) the CPU back end packs the rows of a matrix into one another while
they are loaded, and multiplies with other code, which rounds in another order. An exchanged weight must lie where the
loader would have put it, or its figures would not be those of the file to the last digit.
"""

from __future__ import annotations

import ctypes as c

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import GGML_TYPE_F32, GGML_TYPE_I32
from surgeon.engine.child.llama.layouts import GgmlTensor

_LIST = c.CFUNCTYPE(c.POINTER(c.c_void_p), c.c_void_p)
_BATCH, _USED = 512, 4  # rows that the loader tries an operation with; experts of them


class PackedBuffers:
    """The extra kinds of buffer of every device; `kind_for` finds the one for a weight."""

    def __init__(self, binding: Binding) -> None:
        self._binding, self._base = binding, binding.base
        self._kinds = [(device, kind) for device in self._devices() for kind in self._extra(device)]

    @property
    def multiplications(self) -> set[int]:
        """The operations whose weights may be packed."""
        return {self._binding.mul_mat, self._binding.mul_mat_id}

    def kind_for(self, tensor: GgmlTensor, present: int, operations: set[int]) -> int:
        """The kind of buffer for a weight whose type is the new one already, used by these operations.

        present: the kind that the weight lies in. Only what the processor multiplies with is ever packed.
        """
        packed = {kind: device for device, kind in self._kinds}
        if present not in packed and not self._base.ggml_backend_buft_is_host(present):
            return present
        multiplied = operations <= self.multiplications and len(operations) == 1
        for device, kind in self._kinds if multiplied else ():
            if self._supports(device, kind, tensor, *operations):
                return kind
        usual: int = self._base.ggml_backend_dev_buffer_type(packed[present]) if present in packed else present
        return usual

    def _devices(self) -> list[int]:
        ggml = self._binding.ggml
        return [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]

    def _extra(self, device: int) -> list[int]:
        register = self._base.ggml_backend_dev_backend_reg(device)
        address = self._base.ggml_backend_reg_get_proc_address(register, b"ggml_backend_dev_get_extra_bufts")
        kinds = _LIST(address)(device) if address else None
        found: list[int] = []
        while kinds and kinds[len(found)]:
            found.append(int(kinds[len(found)]))
        return found

    def _supports(self, device: int, kind: int, tensor: GgmlTensor, operation: int) -> bool:
        """Ask as the loader does: an operation on a weight that lies, empty, in such a buffer."""
        buffer = self._base.ggml_backend_buft_alloc_buffer(kind, 0)
        if not buffer:
            return False
        weight = GgmlTensor.from_buffer_copy(tensor)
        weight.buffer, weight.data, weight.extra = buffer, None, None
        experts = operation == self._binding.mul_mat_id
        if experts:
            rows = _plain(GGML_TYPE_F32, tensor.ne[0], _USED, _BATCH)
            result = _plain(GGML_TYPE_F32, tensor.ne[1], _USED, _BATCH)
        else:
            rows = _plain(GGML_TYPE_F32, tensor.ne[0], _BATCH, tensor.ne[2], tensor.ne[3])
            result = _plain(GGML_TYPE_F32, tensor.ne[1], _BATCH, tensor.ne[2], tensor.ne[3])
        chosen = _plain(GGML_TYPE_I32, _USED, _BATCH)
        result.op = operation
        operands = (weight, rows, chosen) if experts else (weight, rows)
        for index, operand in enumerate(operands):
            result.src[index] = c.addressof(operand)
        supported = bool(self._base.ggml_backend_dev_supports_op(device, c.byref(result)))
        self._base.ggml_backend_buffer_free(buffer)
        return supported


def _plain(type_number: int, *ne: int) -> GgmlTensor:
    """A contiguous tensor of four-byte values without memory."""
    tensor = GgmlTensor()
    tensor.type = type_number
    stride = 4
    for index in range(4):
        tensor.ne[index] = ne[index] if index < len(ne) else 1
        tensor.nb[index] = stride
        stride *= tensor.ne[index]
    return tensor
