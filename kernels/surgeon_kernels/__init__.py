"""Quantizers and dequantizers of every GGUF tensor format, in Numba, with ggml's bytes.

    quantize(rows, "Q4_K", weights)        float32[r, c] -> uint8[r, row_bytes]
    dequantize(blocks, "Q4_K")             uint8[r, row_bytes] -> float32[r, c]
    quantize_into, dequantize_into         the same into an array of the caller
    quantization_error(rows, "Q4_K")       squared error per row
    first_invalid(blocks, "Q4_K")          first row with a NaN or an infinity
    quantizable, dequantizable             names of the types
    warm(names)                            compile or load kernels ahead, with progress
    cache_directory(), clear_cache()       where the compiled kernels are
    dead_channels(weights)                 how many channels an importance matrix knows nothing of
    quantize_with_feedback(rows, "Q4_K", factor(H))    less error in what a layer puts out: feedback/__init__.py
    feedback_error(rows, blocks, "Q4_K", H)            squared error per row of what the layer puts out
    choose_shrink(rows, "Q4_K", H1, H2)                how far to trust H, from two halves of a calibration
    feedback_types                                     names of the types that can be encoded so

Importing the package, or `surgeon_kernels.formats`, imports neither numpy nor numba; the functions do, when first used.
Every function releases the GIL while it computes and may be called from several threads.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .feedback import feedback_types
from .formats import REQUIRES_IMATRIX, USES_IMATRIX
from .registry import dequantizable, quantizable

if TYPE_CHECKING:
    from .compilation import cache_directory, clear_cache
    from .feedback.encoder import (
        FeedbackStopped,
        feedback_error,
        quantize_with_feedback,
        quantize_with_feedback_into,
    )
    from .feedback.factors import FeedbackFactor, factor
    from .feedback.shrinkage import choose_shrink
    from .interface import (
        QuantizationError,
        dead_channels,
        dequantize,
        dequantize_into,
        first_invalid,
        quantization_error,
        quantize,
        quantize_into,
    )
    from .warming import WarmProgress, warm

__all__ = [
    "REQUIRES_IMATRIX",
    "USES_IMATRIX",
    "FeedbackFactor",
    "FeedbackStopped",
    "QuantizationError",
    "WarmProgress",
    "cache_directory",
    "choose_shrink",
    "clear_cache",
    "dead_channels",
    "dequantizable",
    "dequantize",
    "dequantize_into",
    "factor",
    "feedback_error",
    "feedback_types",
    "first_invalid",
    "quantizable",
    "quantization_error",
    "quantize",
    "quantize_into",
    "quantize_with_feedback",
    "quantize_with_feedback_into",
    "warm",
]

_HOMES = {
    **dict.fromkeys(("cache_directory", "clear_cache"), "compilation"),
    **dict.fromkeys(("WarmProgress", "warm"), "warming"),
    **dict.fromkeys(("FeedbackFactor", "factor"), "feedback.factors"),
    **dict.fromkeys(
        ("FeedbackStopped", "feedback_error", "quantize_with_feedback", "quantize_with_feedback_into"),
        "feedback.encoder",
    ),
    "choose_shrink": "feedback.shrinkage",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOMES.get(name, 'interface')}", __name__), name)
    globals()[name] = found  # so that this runs once per name
    return found
