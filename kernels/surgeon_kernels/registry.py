"""Which module holds the kernels of each tensor format.

To add a type: write one module in quants/ and add one line to `MODULES`. Importing this file imports neither numba nor
numpy; a type's module is imported when its kernels are first asked for. A module defines, with `@kernel(...)` of
compilation.py:

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
A module that lacks one of the two functions is listed with the name of the other instead of `BOTH`. Validation needs a
line in validation.py only. A kernel allocates nothing inside its loops, and its bytes do not depend on how the caller
cut the rows into slabs.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from .formats import by_name

BOTH = ("quantize", "dequantize")

# format name -> (module in quants/, what it can do)
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "F32": ("f32", BOTH),
    "F16": ("f16", BOTH),
    "Q4_0": ("q4_0", BOTH),
    "Q4_1": ("q4_1", BOTH),
    "Q5_0": ("q5_0", BOTH),
    "Q5_1": ("q5_1", BOTH),
    "Q8_0": ("q8_0", BOTH),
    "Q2_K": ("q2_k", BOTH),
    "Q3_K": ("q3_k", BOTH),
    "Q4_K": ("q4_k", BOTH),
    "Q5_K": ("q5_k", BOTH),
    "Q6_K": ("q6_k", BOTH),
    "IQ2_XXS": ("iq2_xxs", BOTH),
    "IQ2_XS": ("iq2_xs", BOTH),
    "IQ3_XXS": ("iq3_xxs", BOTH),
    "IQ1_S": ("iq1_s", BOTH),
    "IQ4_NL": ("iq4_nl", BOTH),
    "IQ3_S": ("iq3_s", BOTH),
    "IQ2_S": ("iq2_s", BOTH),
    "IQ4_XS": ("iq4_xs", BOTH),
    "IQ1_M": ("iq1_m", BOTH),
    "BF16": ("bf16", BOTH),
    "TQ1_0": ("tq1_0", BOTH),
    "TQ2_0": ("tq2_0", BOTH),
    "MXFP4": ("mxfp4", BOTH),
    "NVFP4": ("nvfp4", BOTH),
    "Q1_0": ("q1_0", BOTH),
    "Q2_0": ("q2_0", BOTH),
}

quantizable: frozenset[str] = frozenset(name for name, (_, can) in MODULES.items() if "quantize" in can)
dequantizable: frozenset[str] = frozenset(name for name, (_, can) in MODULES.items() if "dequantize" in can)


@cache
def module_of(name: str) -> ModuleType:
    """The module that holds the kernels of format `name`; imports numba. Raises ValueError when there is none."""
    if name not in MODULES:
        by_name(name)  # an unknown name gets its own message
        raise ValueError(f"{name} has no kernels; known are {' '.join(MODULES)}")
    return importlib.import_module(f".quants.{MODULES[name][0]}", __package__)
