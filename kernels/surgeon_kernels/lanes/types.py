"""SIMD lanes as Numba types: sixteen values of one kind that live in one LLVM vector.

ggml sums its sub-blocks one element after another in float32, and a kernel that must give its bytes may not change that
order. So a kernel puts one sub-block into each lane: every lane does its own sequential sum, and sixteen advance per
instruction. LLVM lowers `<16 x float>` to one AVX-512, two AVX or four SSE/NEON registers, and one source serves every
processor.

The types are `f32` (float32 lanes), `i32` (int32 lanes) and `mask` (one truth value per lane). `lane_function` turns a
typing rule and an LLVM emitter into a function that kernels can call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic, models, register_model

from .processor import AVX2

LANES = 16

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
F32X, I32X = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
MASKX = I32X if AVX2 else ir.VectorType(I1, LANES)  # why: masks.py

Emitter = Callable[[Any, Any, Signature, Any], Any]  # (context, builder, signature, arguments) -> LLVM value


class LaneType(types.Type):
    """A Numba type whose value is one LLVM vector of `LANES` elements; `scalar` is the Numba type of an element."""

    def __init__(self, name: str, llvm: ir.VectorType, scalar: types.Type) -> None:
        self.llvm = llvm
        self.scalar = scalar
        super().__init__(name=name)


class SlotsType(types.Type):
    """A fixed number of lanes kept on the stack of the kernel, indexed like an array."""

    def __init__(self, element: LaneType) -> None:
        self.element = element
        super().__init__(name=f"slots({element.name})")


f32 = LaneType(f"f32x{LANES}", F32X, types.float32)
i32 = LaneType(f"i32x{LANES}", I32X, types.int32)
mask = LaneType(f"mask{LANES}", MASKX, types.boolean)
f32_slots, i32_slots = SlotsType(f32), SlotsType(i32)


@register_model(LaneType)
class _LaneModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lane_type: LaneType) -> None:
        super().__init__(manager, lane_type, lane_type.llvm)


@register_model(SlotsType)
class _SlotsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, slots_type: SlotsType) -> None:
        super().__init__(manager, slots_type, slots_type.element.llvm.as_pointer())


def lane_function(typing: Callable[..., Signature | None], emit: Emitter) -> Any:
    """A function for kernels: `typing` maps the Numba argument types to a signature (or None), `emit` writes its LLVM.

    `typing` must name its parameters: kernels may call with those names, and Numba checks their count.
    """
    names = typing.__code__.co_varnames[: typing.__code__.co_argcount]
    source = f"def defined(typingctx, {', '.join(names)}):\n    return pair({', '.join(names)})"

    def pair(*arguments: types.Type) -> tuple[Signature, Emitter] | None:
        signature = typing(*arguments)
        return None if signature is None else (signature, emit)

    namespace: dict[str, Any] = {"pair": pair}
    exec(source, namespace)  # intrinsics need a real parameter list
    return intrinsic(namespace["defined"])


def fixed(signature: Signature, emit: Callable[..., Any]) -> Any:
    """A `lane_function` of one fixed signature whose emitter needs only the builder and the arguments."""
    names = [f"a{i}" for i in range(len(signature.args))]
    typing = eval(f"lambda {', '.join(names)}: signature", {"signature": signature})
    return lane_function(typing, lambda context, builder, sig, args: emit(builder, *args))


def splat_constant(value: float, vector: ir.VectorType = F32X) -> ir.Constant:
    """An LLVM constant with `value` in every lane."""
    return ir.Constant(vector, [value] * LANES)


def broadcast(builder: Any, value: Any) -> Any:
    """LLVM for a vector that holds the scalar `value` in every lane."""
    vector = ir.VectorType(value.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def parts(builder: Any, value: Any, width: int) -> list[Any]:
    """LLVM for a vector cut into vectors of `width`."""
    return [
        builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, width), list(range(at, at + width))))
        for at in range(0, value.type.count, width)
    ]


def joined(builder: Any, low: Any, high: Any) -> Any:
    """LLVM for two vectors as one."""
    order = ir.VectorType(I32, 2 * low.type.count)
    return builder.shuffle_vector(low, high, ir.Constant(order, list(range(order.count))))


def call_intrinsic(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """LLVM for a call of the LLVM intrinsic `name`."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)
