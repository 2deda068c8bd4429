"""The model as a grid, kinds of tensors down and layers across, and what a step to the next type would do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from surgeon.model.model import Model, Tensor
from surgeon_kernels.formats import FORMATS

if TYPE_CHECKING:
    from surgeon.session.session import Session

_K_LADDER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
_IQ_LADDER = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", *_K_LADDER[3:])
_SHORT_ROWS = ("Q4_0", "Q5_0", "Q8_0", "F16")  # for rows that no block of 256 fills


@dataclass(frozen=True)
class Grid:
    """layers: their numbers; kinds: short names (`ffn_down`), those outside the layers last; tensors: by kind and
    layer, those outside the layers in the first column."""

    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    tensors: Mapping[tuple[str, int], Tensor]

    @classmethod
    def of(cls, model: Model, wanted: Callable[[Tensor], bool]) -> Grid:
        """The tensors that `wanted` accepts; kinds in alphabetical order, which sets what belongs together together."""
        layers = tuple(layer.index for layer in model.layers)
        first = layers[0] if layers else 0
        inside = {
            (tensor.short, layer.index): tensor for layer in model.layers for tensor in layer.tensors if wanted(tensor)
        }
        outside = {(tensor.name.removesuffix(".weight"), first): tensor for tensor in model.others if wanted(tensor)}
        kinds = (*sorted({kind for kind, _ in inside}), *(kind for kind, _ in outside))
        return cls(layers or (0,), kinds, inside | outside)

    def at(self, kind: int, layer: int) -> Tensor | None:
        """The tensor in row `kind` and column `layer`, both counted from 0."""
        return self.tensors.get((self.kinds[kind], self.layers[layer]))

    def inside(self, corner: tuple[int, int], other: tuple[int, int]) -> tuple[Tensor, ...]:
        """The tensors in the rectangle between two places (row, column)."""
        rows = range(min(corner[0], other[0]), max(corner[0], other[0]) + 1)
        columns = range(min(corner[1], other[1]), max(corner[1], other[1]) + 1)
        found = (self.at(row, column) for row in rows for column in columns)
        return tuple(tensor for tensor in found if tensor is not None)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max((tensor.n_elements for tensor in self.tensors.values()), default=1)


@dataclass(frozen=True)
class TypeStep:
    """What the next type would do to a tensor. more: bytes, negative for fewer."""

    type: str
    more: int


def ladder(type_name: str, columns: int) -> tuple[str, ...]:
    """Types from few bits to many that rows of `columns` weights can have, of the family of `type_name`."""
    if columns % FORMATS["Q4_K"].block:
        return tuple(name for name in _SHORT_ROWS if columns % FORMATS[name].block == 0)
    return _IQ_LADDER if type_name.startswith("IQ") else _K_LADDER


def step(session: Session, tensor: Tensor, by: int) -> TypeStep | None:
    """The next type up (`by` 1) or down (-1) from what the plan gives the tensor; None at the end of the ladder."""
    op = session.ops[tensor.name]
    if op.action == "drop":
        return None
    here = FORMATS[op.to_type].bpw if op.to_type in FORMATS else 0.0
    names = [name for name in ladder(op.to_type, tensor.ne[0]) if (FORMATS[name].bpw - here) * by > 1e-9]
    if not names:
        return None
    name = names[0] if by > 0 else names[-1]
    rows = tensor.n_elements // tensor.ne[0]
    return TypeStep(name, FORMATS[name].row_bytes(tensor.ne[0]) * rows - op.nbytes)
