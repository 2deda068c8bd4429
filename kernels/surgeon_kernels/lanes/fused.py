"""Multiplication and addition in one rounding, where the processor has it.

For sums that no other program must reproduce: unlike everything else here, the last bit may depend on the processor.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.core.errors import TypingError
from numba.core.typing.templates import Signature

from .memory import address
from .types import F32X, FLOAT, LANES, broadcast, call_intrinsic, f32, fixed, lane_function


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call_intrinsic(builder, f"llvm.fmuladd.v{LANES}f32", F32X, [a, b, c])


def _scaled_typing(total: types.Type, array: types.Type, index: types.Type, lanes: types.Type) -> Signature | None:
    if not isinstance(array, types.Array) or array.dtype != types.float32 or total != f32 or lanes != f32:
        raise TypingError("add_scaled(lanes, float32 array, index, lanes)")
    return f32(f32, array, types.intp, f32)


def _scaled_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    total, array, index, lanes = args
    pointer = address(context, builder, signature.args[1], array, index, FLOAT)
    return _fused(builder, broadcast(builder, builder.load(pointer, align=4)), lanes, total)


# fused(a, b, c) = a * b + c
fused = fixed(f32(f32, f32, f32), _fused)
# add_scaled(total, array, index, lanes) = total + array[index] * lanes; `index` is not checked
add_scaled = lane_function(_scaled_typing, _scaled_emit)
