"""Which module holds the kernels of each tensor format.

To add a type: one row in formats.py and one module in quants/, called like the format in lower case. Importing this
file imports neither numba nor numpy; a type's module is imported when its kernels are first asked for. A module
defines, with `@kernel(...)` of compilation.py:

    quantize    QUANTIZE signature:    quantize(x, columns, weights, compat, out)
    dequantize  DEQUANTIZE signature:  dequantize(blocks, out)

x        float32[rows * columns], read-only: whole rows one after another. A kernel may treat the slab as one list of
         blocks; block b of the slab belongs to columns (b % blocks_per_row) * block of its row.
columns  int64, a multiple of the format's block; at least one row is present.
weights  float32[columns], read-only: the importance matrix of every row of the slab; or float32[0] for none. One
         compiled kernel serves both, so test `len(weights) > 0` once per tile, not per element.
compat   bool: True gives ggml's bytes to the last one; False repairs what ggml gets wrong.
out      uint8[rows * row_bytes], every byte of it is written.
blocks   uint8[rows * row_bytes], read-only; the result is float32[rows * columns], bit for bit as ggml's `to_float`.

The values are finite: the public functions refuse others before a kernel runs (`weights` are finite and >= 0 too).
Validation needs a line in validation.py only where a format can hold an infinity or NaN. A kernel allocates nothing
inside its loops, and its bytes do not depend on how the caller cut the rows into slabs.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from .formats import FORMATS, by_name

quantizable: frozenset[str] = frozenset(name for name, format_ in FORMATS.items() if format_.kernels)
dequantizable: frozenset[str] = quantizable


@cache
def module_of(name: str) -> ModuleType:
    """The module that holds the kernels of format `name`; imports numba. Raises ValueError when there is none."""
    if name not in quantizable:
        by_name(name)  # an unknown name gets its own message
        raise ValueError(f"{name} has no kernels; known are {' '.join(sorted(quantizable))}")
    return importlib.import_module(f".quants.{name.lower()}", __package__)
