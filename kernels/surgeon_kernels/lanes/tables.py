"""Looking up lanes in a table that is held in lanes itself, by what the processor has for it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import Signature

from .processor import ARM64, AVX2, AVX512
from .types import (
    F32X,
    FLOAT,
    I1,
    I8,
    I32,
    I32X,
    LANES,
    call_intrinsic,
    f32,
    i32,
    joined,
    lane_function,
    parts,
    splat_constant,
)


def _look_up_typing(table: types.Type, index: types.Type) -> Signature | None:
    return table(table, index) if table in (f32, i32) and index == i32 else None


def _permute_by_halves(builder: Any, table: Any, index: Any) -> Any:
    """AVX2's permutation of eight, for either half of the index in either half of the table."""
    kind = ir.VectorType(FLOAT, 8)
    found = []
    for place in parts(builder, index, 8):
        low, high = (
            call_intrinsic(builder, "llvm.x86.avx2.permps", kind, [part, place]) for part in parts(builder, table, 8)
        )
        found.append(builder.select(builder.icmp_signed(">", place, ir.Constant(place.type, [7] * 8)), high, low))
    return joined(builder, *found)


def _table_of_bytes(builder: Any, table: Any, index: Any, entries: int) -> Any:
    """ARM's table look-up: it takes bytes, so each index (below `entries`) becomes those of its four bytes."""
    in_bytes, quarter = ir.VectorType(I8, 16), ir.VectorType(I32, 4)
    registers = [builder.bitcast(part, in_bytes) for part in parts(builder, table, 4)[: entries // 4]]
    found = []
    for part in parts(builder, index, 4):
        low = builder.and_(part, ir.Constant(quarter, [entries - 1] * 4))
        spread = builder.mul(low, ir.Constant(quarter, [0x04040404] * 4))
        places = builder.bitcast(builder.add(spread, ir.Constant(quarter, [0x03020100] * 4)), in_bytes)
        name = f"llvm.aarch64.neon.tbl{len(registers)}.v16i8"
        found.append(builder.bitcast(call_intrinsic(builder, name, in_bytes, [*registers, places]), quarter))
    low, high = joined(builder, *found[:2]), joined(builder, *found[2:])
    return builder.bitcast(joined(builder, low, high), table.type)


def _chosen_by_bits(builder: Any, table: Any, index: Any, entries: int) -> Any:
    """A tree of selects over the lowest bits of the index."""
    level = [builder.shuffle_vector(table, table, ir.Constant(I32X, [k] * LANES)) for k in range(entries)]
    bit = 0
    while len(level) > 1:
        chosen = builder.trunc(builder.lshr(index, splat_constant(bit, I32X)), ir.VectorType(I1, LANES))
        level = [builder.select(chosen, level[k + 1], level[k]) for k in range(0, len(level), 2)]
        bit += 1
    return level[0]


def _look_up_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    """One permutation instruction on AVX-512, four on AVX2, one for every register on ARM, else selects."""
    table, index = args
    if AVX512:
        as_float = builder.bitcast(table, F32X)
        permuted = call_intrinsic(builder, "llvm.x86.avx512.permvar.sf.512", F32X, [as_float, index])
        return builder.bitcast(permuted, table.type)
    if AVX2:
        return builder.bitcast(_permute_by_halves(builder, builder.bitcast(table, F32X), index), table.type)
    return (_table_of_bytes if ARM64 else _chosen_by_bits)(builder, table, index, LANES)


def _look_up_eight_emit(context: Any, builder: Any, signature: Signature, args: Any) -> Any:
    """One permutation instruction for every register of the index, which sees its lowest bits only; else selects."""
    table, index = args
    if AVX512:
        return _look_up_emit(context, builder, signature, args)
    if AVX2:
        low = parts(builder, table, 8)[0]
        return joined(
            builder,
            *(
                call_intrinsic(builder, "llvm.x86.avx2.permps", low.type, [low, part])
                for part in parts(builder, index, 8)
            ),
        )
    return (_table_of_bytes if ARM64 else _chosen_by_bits)(builder, table, index, 8)


# documented in arithmetic.py
look_up = lane_function(_look_up_typing, _look_up_emit)
look_up_eight = lane_function(
    lambda table, index: _look_up_typing(table, index) if table == f32 else None, _look_up_eight_emit
)
