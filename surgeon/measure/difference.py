"""What two models differ in: tensors, types, sizes, metadata, and how far the weights are from each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgeon.gguf.values import Value
from surgeon.model.model import Model, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_WEIGHTS = 1 << 18  # of a tensor: the error of rows scatters by a few per cent of itself


@dataclass(frozen=True)
class Pair:
    """A tensor of the first model and its namesake in the second; None where one of them has none."""

    name: str
    first: Tensor | None
    second: Tensor | None

    @property
    def kind(self) -> str:
        """`ffn_down`; the whole name outside the layers."""
        tensor = self.first or self.second
        assert tensor is not None  # a pair has at least one
        return tensor.short if tensor.layer is not None else self.name.removesuffix(".weight")

    @property
    def same_shape(self) -> bool:
        return self.first is not None and self.second is not None and self.first.ne == self.second.ne

    @property
    def same_type(self) -> bool:
        return self.same_shape and self.first.type_name == self.second.type_name  # type: ignore[union-attr]


@dataclass(frozen=True)
class Key:
    """A metadata key whose value differs, as text; None where a model lacks it."""

    name: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class Difference:
    """tensors: every name of either model, in the first one's order, then the second's; metadata: keys that differ."""

    first: Model
    second: Model
    tensors: tuple[Pair, ...]
    metadata: tuple[Key, ...]

    @property
    def kinds(self) -> dict[str, tuple[Pair, ...]]:
        """Kind -> its pairs, of kinds in which a type, a shape or a tensor differs."""
        found: dict[str, list[Pair]] = {}
        for pair in self.tensors:
            found.setdefault(pair.kind, []).append(pair)
        return {kind: tuple(pairs) for kind, pairs in found.items() if not all(pair.same_type for pair in pairs)}


def difference(first: Model, second: Model) -> Difference:
    """Tensors are paired by name. Nothing of their data is read."""
    ours = {tensor.name: tensor for tensor in first.tensors}
    theirs = {tensor.name: tensor for tensor in second.tensors}
    names = dict.fromkeys((*ours, *theirs))
    pairs = tuple(Pair(name, ours.get(name), theirs.get(name)) for name in names)
    keys = dict.fromkeys((*first.file.kv, *second.file.kv))
    metadata = (Key(key, shown(first.file.kv.get(key)), shown(second.file.kv.get(key))) for key in keys)
    differing = tuple(
        key for key in metadata if first.file.kv.get(key.name) != second.file.kv.get(key.name)
    )  # whole values are compared, not what is shown of them
    return Difference(first, second, pairs, differing)


def shown(value: Value | None) -> str | None:
    """A value in a few words; None where there is none."""
    return None if value is None else value.brief()


def type_counts(tensors: Sequence[Tensor | None]) -> str:
    """`24 Q4_K, 12 Q6_K`, the most frequent first."""
    counted = Counter(tensor.type_name for tensor in tensors if tensor is not None)
    return ", ".join(f"{count} {name}" for name, count in counted.most_common()) or "none"


def errors(found: Difference) -> Iterator[tuple[Pair, float]]:
    """Each pair of one shape with the relative error of the second against the first, sqrt(sum (a - b)^2 / sum a^2).

    Over a sample of rows, the same of both. Pairs of a type that cannot be decoded are passed over. Raises
    SurgeonError where a file cannot be read.
    """
    import numpy as np

    import surgeon_kernels

    for pair in found.tensors:
        first, second = pair.first, pair.second
        if first is None or second is None or not pair.same_shape:
            continue
        if not {first.type_name, second.type_name} <= surgeon_kernels.dequantizable:
            continue
        a, b = _sample(found.first, first), _sample(found.second, second)
        energy = float(np.sum(np.square(a, dtype=np.float64)))
        apart = float(np.sum(np.square(a - b, dtype=np.float64)))
        yield pair, math.sqrt(apart / energy) if energy else 0.0 if not apart else math.inf


def _sample(model: Model, tensor: Tensor) -> NDArray[np.float32]:
    """float32[rows, columns], rows evenly spread over the whole tensor."""
    import numpy as np

    import surgeon_kernels
    from surgeon_kernels.formats import FORMATS

    columns = tensor.ne[0] if tensor.ne else 1
    rows = tensor.n_elements // columns
    row_bytes = FORMATS[tensor.type_name].row_bytes(columns)
    chosen = min(rows, max(1, SAMPLE_WEIGHTS // columns))
    blocks = np.empty((chosen, row_bytes), np.uint8)
    for place, row in enumerate(np.linspace(0, rows - 1, chosen).astype(int)):
        model.file.read_into(tensor.info, int(row) * row_bytes, blocks[place])
    return surgeon_kernels.dequantize(blocks, tensor.type_name)
