"""Kernels that read a grid: their function takes it as a last argument, their callers need not know of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types

from ..compilation import Kernel
from .grids import Grid, grid

_I32 = types.Array(types.int32, 1, "C", readonly=True)
_GRID = types.NamedTuple([types.Array(types.uint8, 2, "C", readonly=True), _I32, _I32, _I32, _I32], Grid)


class GridKernel(Kernel):
    """A kernel of `signature` whose function takes the grid called `name` after the signature's arguments."""

    def __init__(self, function: Callable[..., Any], signature: Any, name: str) -> None:
        super().__init__(function, signature.return_type(*signature.args, _GRID))
        self._grid_name = name

    def __call__(self, *arguments: Any) -> Any:
        return super().__call__(*arguments, grid(self._grid_name))


def kernel_with_grid(name: str, signature: Any) -> Callable[[Callable[..., Any]], GridKernel]:
    """Decorator: a kernel of this signature that works with the grid called `name` (a key of grids.CODEBOOKS)."""
    return lambda function: GridKernel(function, signature, name)
