"""ggml's own quantizers, reached by ctypes in the shared object of the xllamacpp package.

Byte-exact on x86-64 Linux only: elsewhere compilers contract products and sums in ggml-quants.c, and Windows builds
export no symbols. Nothing of xllamacpp is imported.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX

BYTE_EXACT = sys.platform == "linux" and platform.machine() == "x86_64"

_FLOATS = ctypes.POINTER(ctypes.c_float)
_ROW_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """The head of ggml's `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _ROW_TO_FLOAT),
    )


def _library_path() -> Path:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the tests' oracle needs the package xllamacpp (extra `test`)")
    return next(Path(spec.submodule_search_locations[0]).glob("xllamacpp.*so"))


class Oracle:
    """ggml's reference functions. Instances share the loaded library; calls release the GIL."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(_library_path()))
        for name, result, arguments in (
            ("ggml_quantize_chunk", ctypes.c_size_t,
             [ctypes.c_int, _FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOATS]),
            ("ggml_quantize_init", None, [ctypes.c_int]),
            ("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), [ctypes.c_int]),
            ("ggml_validate_row_data", ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
        ):  # fmt: skip
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments

    def traits(self, name: str) -> _TypeTraits:
        traits: _TypeTraits = self.library.ggml_get_type_traits(FORMATS[name].number).contents
        if (traits.blck_size, traits.type_size) != (FORMATS[name].block, FORMATS[name].block_bytes):
            raise ValueError(f"this ggml has another {name}: {traits.blck_size} in {traits.type_size} bytes")
        return traits

    def prepare(self, name: str) -> None:
        """Build the tables of a type now (seconds for the IQ types), so that a timing does not hold them."""
        self.library.ggml_quantize_init(FORMATS[name].number)

    def quantize(
        self, rows: NDArray[np.float32], name: str, weights: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """`ggml_quantize_chunk` over float32[rows, columns]; uint8[rows, row_bytes]."""
        if weights is None and name in REQUIRES_IMATRIX:
            raise ValueError(f"{name} needs weights (ggml would abort)")
        if not (np.abs(rows) < 1e30).all():
            raise ValueError("a value that makes ggml abort")
        rows = np.ascontiguousarray(rows, np.float32)
        count, columns = rows.shape
        out = np.empty((count, FORMATS[name].row_bytes(columns)), np.uint8)
        if weights is not None:
            weights = np.ascontiguousarray(weights, np.float32)
            assert weights.shape == (columns,)
        written = self.library.ggml_quantize_chunk(
            FORMATS[name].number,
            rows.ctypes.data_as(_FLOATS),
            out.ctypes.data,
            0,
            count,
            columns,
            None if weights is None else weights.ctypes.data_as(_FLOATS),
        )
        assert written == out.nbytes
        return out

    def dequantize(self, blocks: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
        """ggml's `to_float` over uint8[rows, row_bytes]; float32[rows, columns]."""
        columns = blocks.shape[1] // FORMATS[name].block_bytes * FORMATS[name].block
        out = np.empty((blocks.shape[0], columns), np.float32)
        self.dequantize_into(np.ascontiguousarray(blocks), name, out)
        return out

    def dequantize_into(self, blocks: NDArray[np.uint8], name: str, out: NDArray[np.float32]) -> None:
        if name == "F32":  # ggml has no function for it
            out[:] = blocks.view(np.float32)
        else:
            self.traits(name).to_float(blocks.ctypes.data, out.ctypes.data, out.size)

    def is_valid(self, blocks: NDArray[np.uint8], name: str) -> bool:
        """`ggml_validate_row_data` over all bytes of `blocks`."""
        blocks = np.ascontiguousarray(blocks)
        return bool(self.library.ggml_validate_row_data(FORMATS[name].number, blocks.ctypes.data, blocks.nbytes))


@cache
def oracle() -> Oracle:
    """The oracle of this process."""
    return Oracle()
