"""The public functions: they check their arguments, then run the kernels of the type.

`qtype` is a format's name in any case ("Q4_K") or an enum member whose `.name` is one (gguf.GGMLQuantizationType).
Everything wrong with an argument is a ValueError that says what was found; `out` may then be partly written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import squared_errors, validation
from .formats import REQUIRES_IMATRIX, USES_IMATRIX, Format, by_name
from .registry import dequantizable, module_of, quantizable

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Weights per kernel call. Threads meet at Python's lock between two calls: with an eighth of it, two of them quantized
# to BF16 no faster than one. Errors need a restored copy of each chunk, which half a megabyte keeps in the cache.
_CHUNK = 1 << 20
_ERROR_CHUNK = 1 << 17
_NO_WEIGHTS = np.empty(0, np.float32)
_NO_WEIGHTS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """What quantizing loses, per row: float64[r] sums over the row of (w - w')**2 and of weight * (w - w')**2.

    Without weights both are the same.
    """

    squared: NDArray[np.float64]
    weighted: NDArray[np.float64]


def quantize(rows: Floats, qtype: Any, weights: Floats | None = None, *, compat: bool = False) -> Bytes:
    """Quantize float32[r, c] to uint8[r, row_bytes].

    weights: importance matrix float32[c], finite and not negative; types that do not use one ignore it.
    compat: ggml's bytes also where ggml is wrong (README: differences).
    Raises ValueError for a type that cannot be quantized or needs weights, rows that are not a multiple of its block,
    other shapes and dtypes, and values that are not finite.
    """
    format_ = format_of(qtype)
    check_rows(rows)
    out = np.empty((rows.shape[0], format_.row_bytes(rows.shape[1])), np.uint8)
    quantize_into(rows, qtype, out, weights, compat=compat)
    return out


def quantize_into(rows: Floats, qtype: Any, out: Bytes, weights: Floats | None = None, *, compat: bool = False) -> None:
    """As `quantize`, into C-contiguous uint8[r, row_bytes]."""
    format_ = _quantizable(qtype)
    rows = check_rows(rows)
    columns = rows.shape[1]
    _check_out(out, np.uint8, (rows.shape[0], format_.row_bytes(columns)))
    importance = _check_weights(weights, format_, columns)
    kernel = module_of(format_.name).quantize
    for part in _chunks(rows, _CHUNK):
        values = _frozen(rows[part])
        _check_finite(values, part.start, columns)
        kernel(values, columns, importance, bool(compat), out[part].reshape(-1))


def dequantize(blocks: Bytes, qtype: Any) -> Floats:
    """Restore float32[r, c] from uint8[r, row_bytes]; bit for bit as ggml. Raises ValueError as `quantize` does."""
    format_ = _dequantizable(qtype)
    out = np.empty((_check_blocks(blocks, format_).shape[0], _columns(blocks, format_)), np.float32)
    dequantize_into(blocks, qtype, out)
    return out


def dequantize_into(blocks: Bytes, qtype: Any, out: Floats) -> None:
    """As `dequantize`, into C-contiguous float32[r, c]."""
    format_ = _dequantizable(qtype)
    blocks = _check_blocks(blocks, format_)
    _check_out(out, np.float32, (blocks.shape[0], _columns(blocks, format_)))
    if out.size:
        module_of(format_.name).dequantize(_frozen(blocks), out.reshape(-1))


def quantization_error(
    rows: Floats, qtype: Any, weights: Floats | None = None, *, compat: bool = False
) -> QuantizationError:
    """What `quantize` would lose of each row, without keeping the restored copy. Arguments and errors as `quantize`."""
    format_ = _quantizable(qtype)
    rows = check_rows(rows)
    columns = rows.shape[1]
    row_bytes = format_.row_bytes(columns)
    result = QuantizationError(np.zeros(rows.shape[0]), np.zeros(rows.shape[0]))
    importance = _NO_WEIGHTS if weights is None else _check_matrix(weights, columns)
    for part in _chunks(rows, _ERROR_CHUNK):
        blocks = np.empty((part.stop - part.start, row_bytes), np.uint8)
        quantize_into(rows[part], qtype, blocks, weights, compat=compat)
        restored = dequantize(blocks, qtype)
        squared_errors.sum_errors(
            _frozen(rows[part]), _frozen(restored), importance, result.squared[part], result.weighted[part]
        )
    return result


def first_invalid(blocks: Bytes, qtype: Any) -> int:
    """Index of the first row of uint8[r, row_bytes] that holds a NaN or an infinity, or -1.

    The check llama-quantize makes of what it reads and writes: every value of F16, BF16, F32 and F64, the scales of
    block formats; integers and NVFP4 cannot be invalid.
    """
    format_ = format_of(qtype)
    blocks = _check_blocks(blocks, format_)
    if not blocks.size:
        return -1
    at = validation.first_invalid_byte(_frozen(blocks), format_)
    return -1 if at < 0 else at // int(blocks.shape[1])


def dead_channels(weights: Floats) -> int:
    """How many channels of an importance matrix are exactly zero: they never fired in calibration."""
    return int(np.count_nonzero(np.asarray(weights) == 0))


def format_of(qtype: Any) -> Format:
    """The format of a name or an enum member. Raises ValueError for an unknown one."""
    return by_name(qtype if isinstance(qtype, str) else getattr(qtype, "name", repr(qtype)))


def _quantizable(qtype: Any) -> Format:
    format_ = format_of(qtype)
    if format_.name not in quantizable:
        how = "can only be dequantized" if format_.name in dequantizable else "cannot be quantized"
        raise ValueError(f"{format_.name} {how}; quantizable are {' '.join(sorted(quantizable))}")
    return format_


def _dequantizable(qtype: Any) -> Format:
    format_ = format_of(qtype)
    if format_.name not in dequantizable:
        raise ValueError(f"{format_.name} cannot be dequantized; dequantizable are {' '.join(sorted(dequantizable))}")
    return format_


def _describe(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__


def check_rows(rows: Any) -> Floats:
    """The rows, contiguous; raises ValueError unless they are float32[rows, columns]."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        raise ValueError(f"rows must be float32[rows, columns], not {_describe(rows)}")
    required: Floats = np.require(rows, requirements=["C", "A"])
    return required


def _check_blocks(blocks: Any, format_: Format) -> Bytes:
    if not isinstance(blocks, np.ndarray) or blocks.dtype != np.uint8 or blocks.ndim != 2:
        raise ValueError(f"blocks must be uint8[rows, bytes], not {_describe(blocks)}")
    if blocks.shape[1] % format_.block_bytes:
        raise ValueError(
            f"{format_.name} has blocks of {format_.block_bytes} bytes, and rows of {blocks.shape[1]} bytes do not "
            "hold a whole number of them"
        )
    contiguous: Bytes = np.ascontiguousarray(blocks)
    return contiguous


def _columns(blocks: Bytes, format_: Format) -> int:
    return int(blocks.shape[1]) // format_.block_bytes * format_.block


def _check_out(out: Any, dtype: Any, shape: tuple[int, int]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        raise ValueError(f"out must be {np.dtype(dtype)}{list(shape)}, not {_describe(out)}")
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise ValueError(f"out must be C-contiguous, aligned and writable {np.dtype(dtype)}{list(shape)}")


def _check_matrix(weights: Any, columns: int) -> Floats:
    if not isinstance(weights, np.ndarray) or weights.dtype != np.float32 or weights.shape != (columns,):
        raise ValueError(f"weights must be float32[{columns}], one per column, not {_describe(weights)}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    checked: Floats = _frozen(np.require(weights, requirements=["C", "A"]))
    return checked


def _check_weights(weights: Any, format_: Format, columns: int) -> Floats:
    if weights is None:
        if format_.name in REQUIRES_IMATRIX:
            raise ValueError(f"{format_.name} cannot be quantized without an importance matrix")
        return _NO_WEIGHTS
    checked = _check_matrix(weights, columns)
    return checked if format_.name in USES_IMATRIX else _NO_WEIGHTS


def _check_finite(values: Floats, first_row: int, columns: int) -> None:
    at = validation.first_nonfinite(values)
    if at >= 0:
        row, column = first_row + at // columns, at % columns
        raise ValueError(f"row {row}, column {column} is {values[at]}: only finite values can be quantized")


def _chunks(rows: Floats, size: int) -> Iterator[slice]:
    """Slices of whole rows, each of about `size` weights."""
    count, columns = rows.shape
    if columns:
        step = max(1, size // columns)
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))


def _frozen(array: Any) -> Any:
    """A flat read-only view: kernels are compiled for that one type of input."""
    view = array.reshape(-1).view()
    view.flags.writeable = False
    return view
