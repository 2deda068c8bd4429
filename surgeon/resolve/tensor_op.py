"""What happens to one tensor, and the size of a file of such tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import prod
from typing import Literal, NamedTuple

from surgeon.anatomy import TensorSlice
from surgeon.gguf.layout import padded
from surgeon.gguf.values import Value
from surgeon.model.categories import dimensions
from surgeon.model.model import Tensor
from surgeon.plan.plan import TypeRule


class Cause(StrEnum):
    """What decided the type of a tensor."""

    PRUNED = "pruned"
    KEPT = "kept"  # never quantized: norms, routers, one-dimensional tensors
    HAND = "hand"
    FIT = "fit"  # worked out for a size
    OPTION = "option"
    RULE = "rule"
    MIX = "mix"
    BASE = "base"
    UNFIT = "unfit"  # no type's blocks fill a row


class TensorOp(NamedTuple):
    """What happens to one tensor.

    source, name: in the input and in the output (the same when dropped); nbytes: in the output; reason: one phrase for
    the user; imatrix_name: the entry that weighs the error, if any is used; slice: what stays of a tensor that holds
    layers or experts side by side, when some are pruned; scale: what an F32 tensor that is copied is multiplied by;
    cause, rule: what decided; fell_back: the row length forced another type than the one decided on; feedback: the
    input whose second moments the feedback encoder goes by, None for the stock encoder.
    healed: the tensor of the heal file that is written in its place (`from_type` is then that one's).

    A named tuple: thousands are made on every keystroke, and a frozen dataclass takes six times as long to make.
    """

    tensor: Tensor
    source: str
    name: str
    action: Literal["drop", "copy", "convert"]
    from_type: str
    to_type: str
    nbytes: int
    reason: str
    imatrix_name: str | None = None
    slice: TensorSlice | None = None
    scale: float | None = None
    cause: Cause = Cause.BASE
    rule: TypeRule | None = None
    fell_back: bool = False
    feedback: str | None = None
    healed: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """The tensor whose data is written: the healed one where there is one."""
        return self.tensor if self.healed is None else self.healed

    @property
    def ne(self) -> tuple[int, ...]:
        """Dimensions in the output."""
        return self.tensor.ne if self.slice is None else sliced(self.tensor.ne, self.slice)

    @property
    def n_elements(self) -> int:
        """Elements in the output."""
        return self.tensor.n_elements if self.slice is None else prod(self.ne)


def renamed(op: TensorOp, name: str) -> TensorOp:
    """The same under another name in the output; `_replace` takes three times as long, and a layer pruned renames
    thousands."""
    return tuple.__new__(TensorOp, (*op[:_NAME], name, *op[_NAME + 1 :]))


_NAME = TensorOp._fields.index("name")


def file_bytes(metadata: Iterable[tuple[str, Value]], ops: Sequence[TensorOp], alignment: int) -> int:
    """Size of a file with these keys and tensors: `gguf_layout.header`'s total without making its bytes."""
    head = 24 + sum([12 + len(key.encode()) + len(value.raw) for key, value in metadata])
    shapes = Counter([op.tensor.info.ne if op.slice is None else op.ne for op in ops])
    head += 24 * len(ops) + 8 * sum([count * dimensions(ne) for ne, count in shapes.items()])
    head += len("".join([op.name for op in ops]).encode())
    sizes = Counter([op.nbytes for op in ops])
    return padded(head, alignment) + sum([count * padded(size, alignment) for size, count in sizes.items()])


def sliced(ne: tuple[int, ...], kept: TensorSlice) -> tuple[int, ...]:
    """The dimensions that remain of `ne`."""
    return (*ne[: kept.dimension], kept.length, *ne[kept.dimension + 1 :])
