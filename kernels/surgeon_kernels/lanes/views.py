"""Views: plain pointers to the numbers of an array or of slots, for inner loops.

Numba counts references of an array each time it is taken out of a tuple, with atomic operations, and cannot always see
that this is needless. A view has no owner and costs nothing to pass around; the array or the slots must outlive it.

    view(array or slots)       the view; item i of lane l of slots is at 16i + l
    v[i], v[i] = x             one number; indices are not checked
    view_i32(v, i)             i32 lanes from v[i : i + 16] of an int32 view
    view_gather(v, lanes)      lane l = v[lanes[l]] of an int32 or a float32 view
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, Signature, infer_global
from numba.extending import lower_builtin, models, register_model

from .types import FLOAT, I32, I32X, LANES, SlotsType, f32, i32, lane_function

_ITEMS: dict[Any, Any] = {types.float32: FLOAT, types.int32: I32}


class ViewType(types.Type):
    """A pointer to numbers of one kind."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"view({dtype})")


@register_model(ViewType)
class _ViewModel(models.PrimitiveModel):
    def __init__(self, manager: Any, view_type: ViewType) -> None:
        super().__init__(manager, view_type, _ITEMS[view_type.dtype].as_pointer())


VIEWS: dict[Any, Any] = {dtype: ViewType(dtype) for dtype in _ITEMS}


def _view_typing(source: types.Type) -> Signature | None:
    if isinstance(source, SlotsType):
        return VIEWS[source.element.scalar](source)
    return VIEWS[source.dtype](source) if isinstance(source, types.Array) and source.dtype in VIEWS else None


def _view_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    source = signature.args[0]
    pointer = args[0] if isinstance(source, SlotsType) else context.make_array(source)(context, builder, args[0]).data
    return builder.bitcast(pointer, _ITEMS[signature.return_type.dtype].as_pointer())


view = lane_function(_view_typing, _view_emit)


class _GetItem(AbstractTemplate):
    def generic(self, args: tuple[types.Type, ...], kws: Any) -> Signature | None:
        return args[0].dtype(args[0], types.intp) if isinstance(args[0], ViewType) else None


class _SetItem(AbstractTemplate):
    def generic(self, args: tuple[types.Type, ...], kws: Any) -> Signature | None:
        return types.void(args[0], types.intp, args[0].dtype) if isinstance(args[0], ViewType) else None


infer_global(operator.getitem)(_GetItem)
infer_global(operator.setitem)(_SetItem)


def _get(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    return builder.load(builder.gep(args[0], [args[1]]))


def _set(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    builder.store(args[2], builder.gep(args[0], [args[1]]))
    return context.get_dummy_value()


for _dtype, _view in VIEWS.items():
    lower_builtin(operator.getitem, _view, types.intp)(_get)
    lower_builtin(operator.setitem, _view, types.intp, _dtype)(_set)


def _i32_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(args[0], [args[1]]), I32X.as_pointer()), align=4)


view_i32 = lane_function(lambda v, i: i32(v, types.intp) if v == VIEWS[types.int32] else None, _i32_emit)


def _gather_typing(v: types.Type, at: types.Type) -> Signature | None:
    results = {VIEWS[types.int32]: i32, VIEWS[types.float32]: f32}
    return results[v](v, at) if v in results and at == i32 else None


def _gather_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    result = ir.Constant(signature.return_type.llvm, ir.Undefined)
    for lane in range(LANES):
        index = builder.sext(builder.extract_element(args[1], I32(lane)), ir.IntType(64))
        result = builder.insert_element(result, builder.load(builder.gep(args[0], [index])), I32(lane))
    return result


view_gather = lane_function(_gather_typing, _gather_emit)
