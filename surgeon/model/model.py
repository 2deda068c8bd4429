"""A model on the table: the tensors of a GGUF grouped into layers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surgeon.gguf.file import GGUFFile, TensorInfo, Value, ValueType, open_gguf
from surgeon.model.layer_names import short_name, split_layer
from surgeon.terminal import cell


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and its place. layer: N of `blk.N.`, else None; short: the name without block and `.weight`."""

    info: TensorInfo
    layer: int | None
    short: str

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def ne(self) -> tuple[int, ...]:
        """Dimensions, row length first."""
        return self.info.ne

    @property
    def type_name(self) -> str:
        return self.info.type_name

    @property
    def nbytes(self) -> int:
        return self.info.nbytes

    @property
    def n_elements(self) -> int:
        return self.info.n_elements


@dataclass(frozen=True)
class Layer:
    """The tensors `blk.<index>.…`, in stored order."""

    index: int
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def n_elements(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)


@dataclass(frozen=True, eq=False)
class Model:
    """layers: ascending, only those with tensors; others: tensors outside blocks; tensors: all, in stored order."""

    file: GGUFFile
    architecture: str
    layers: tuple[Layer, ...]
    others: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]

    def hparam(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`, a list for per-layer arrays; `default` when there is none."""
        value = self.file.kv.get(f"{self.architecture}.{key}")
        if value is None:
            return default
        known = self._decoded.get(key)
        if known is None or known[0] is not value:
            known = self._decoded[key] = value, value.small()
        found = known[1]
        return default if found is None else list(found) if isinstance(found, list) else found

    @cached_property
    def _decoded(self) -> dict[str, tuple[Value, Any]]:
        """Hyperparameters asked for before: asked for layer by layer, a long array would be decoded as often."""
        return {}

    @cached_property
    def block_count(self) -> int:
        """`<architecture>.block_count`, or one more than the highest layer seen."""
        count = self.hparam("block_count")
        if isinstance(count, int) and not isinstance(count, bool):
            return count
        return self.layers[-1].index + 1 if self.layers else 0

    @cached_property
    def n_parameters(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors, without metadata and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.nbytes / self.n_parameters if self.n_parameters else 0.0

    @cached_property
    def name(self) -> str:
        """`general.name`, or the file's name without its ending."""
        value = self.file.kv.get("general.name")
        text = str(value.decode()) if value and value.type is ValueType.STRING else ""
        return cell(text.strip(" ")) if text.strip() else self.file.path.stem


def load_model(path: str | os.PathLike[str]) -> Model:
    """Open a GGUF and group its tensors; raises GGUFError."""
    return model_of(open_gguf(path))


def model_of(file: GGUFFile) -> Model:
    """The model in an open file; a file without `general.architecture` has the architecture ''."""
    tensors = tuple(_tensor(info) for info in file.tensors)
    layers: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            layers.setdefault(tensor.layer, []).append(tensor)
    value = file.kv.get("general.architecture")
    return Model(
        file=file,
        architecture=cell(value.decode()).strip() if value and value.type is ValueType.STRING else "",
        layers=tuple(Layer(index, tuple(layers[index])) for index in sorted(layers)),
        others=tuple(tensor for tensor in tensors if tensor.layer is None),
        tensors=tensors,
    )


def _tensor(info: TensorInfo) -> Tensor:
    return Tensor(info, split_layer(info.name)[0], short_name(info.name))
