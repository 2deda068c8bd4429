"""What decides a layer's role: its number, a count in the metadata, or an entry of a per-layer array.

Every kind below answers `of(metadata)` with one word per layer, as llama.cpp's loader would see them, so that the words
before and after pruning can be compared. "" stands for the ordinary role that needs no word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.gguf.values import Value

# A damaged file may claim four billion blocks; llama.cpp itself takes 512.
MAX_BLOCKS = 1 << 16


@dataclass(frozen=True)
class Metadata:
    """The hyper-parameters of one model, by key without the `<architecture>.` prefix."""

    architecture: str
    kv: Mapping[str, Value]

    def get(self, key: str, default: Any = None) -> Any:
        """The decoded value of `<architecture>.<key>`; arrays are lists."""
        value = self.kv.get(f"{self.architecture}.{key}")
        found = None if value is None else value.small()
        return default if found is None else found

    def number(self, key: str, default: float = 0) -> float:
        """A scalar, or the first entry of an array; `default` for anything that is not a number."""
        value = self.get(key, default)
        if isinstance(value, list):
            value = value[0] if value else default
        return value if isinstance(value, int | float) else default

    def integer(self, key: str, default: int = 0) -> int:
        number = self.number(key, default)
        return int(number) if math.isfinite(number) else default

    def array(self, key: str) -> list[Any] | None:
        """The entries of an array of numbers, None when the key is absent or anything else."""
        value = self.get(key)
        numbers = isinstance(value, list) and all(isinstance(entry, int | float) for entry in value)
        return value if numbers else None

    @property
    def block_count(self) -> int:
        """All blocks, those of multi-token prediction included."""
        return min(self.integer("block_count"), MAX_BLOCKS)

    @property
    def trunk(self) -> int:
        """Blocks without the trailing ones of multi-token prediction: llama.cpp's n_layer."""
        return max(0, self.block_count - max(0, self.integer("nextn_predict_layers")))

    @property
    def vocabulary(self) -> int:
        tokens = self.kv.get("tokenizer.ggml.tokens")
        return self.integer("vocab_size") or (tokens.count if tokens else 0)


@dataclass(frozen=True, slots=True)
class Periodic:
    """One layer in every `period` is `special`, the others are `ordinary`; llama.cpp counts by layer number.

    first: number of the first special layer; None: the last of each period. period_key: a scalar that states the
    period. array_key: a per-layer array that the loader prefers to counting (non-zero: ordinary). active_key: without
    a positive value there (`active_default` when absent) the pattern does not exist. shapes: the roles have different
    tensors, so a shifted layer cannot be loaded.
    """

    special: str
    ordinary: str
    period: int = 0
    first: int | None = None
    period_key: str = ""
    array_key: str = ""
    active_key: str = ""
    active_default: int = 0
    shapes: bool = False

    def length(self, metadata: Metadata) -> int:
        """The period in force; 0: no layer is special."""
        if self.period_key and metadata.array(self.period_key) is None:
            return max(0, metadata.integer(self.period_key, self.period))
        return self.period

    def of(self, metadata: Metadata) -> list[str]:
        count = metadata.block_count
        if self.active_key and metadata.number(self.active_key, self.active_default) <= 0:
            return [""] * count
        listed = metadata.array(self.array_key) if self.array_key else None
        if listed is not None:
            return [self.ordinary if i < len(listed) and listed[i] else self.special for i in range(count)]
        period = self.length(metadata)
        hit = period - 1 if self.first is None else self.first
        trunk = metadata.trunk
        return [self.special if i >= trunk or (period and i % period == hit) else self.ordinary for i in range(count)]


@dataclass(frozen=True, slots=True)
class Leading:
    """The first layers have a role of their own: as many as `key` says, or `count` where llama.cpp has it built in.

    adjust: whether pruning one of them lowers the key.
    """

    role: str
    other: str = ""
    key: str = ""
    count: int = 0
    adjust: bool = True
    shapes: bool = False

    def of(self, metadata: Metadata) -> list[str]:
        if self.key and metadata.get(self.key) is None:
            return [""] * metadata.block_count
        count = metadata.integer(self.key) if self.key else self.count
        return [self.role if i < count else self.other for i in range(metadata.block_count)]


@dataclass(frozen=True, slots=True)
class Trailing:
    """The last layers have a role of their own: as many as `key` says. Pruning one of them lowers the key.

    inside_trunk: they are the last of the trunk; otherwise the very last.
    """

    role: str
    key: str
    inside_trunk: bool = True
    shapes: bool = True

    def start(self, metadata: Metadata) -> int:
        """The first layer with the role."""
        return (metadata.trunk if self.inside_trunk else metadata.block_count) - metadata.integer(self.key)

    def of(self, metadata: Metadata) -> list[str]:
        start, end = self.start(metadata), metadata.trunk if self.inside_trunk else metadata.block_count
        return [self.role if start <= i < end else "" for i in range(metadata.block_count)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A per-layer array gives the role: `zero` where the entry is 0, else `nonzero`. A scalar or nothing: no roles."""

    key: str
    zero: str
    nonzero: str = ""
    shapes: bool = True

    def of(self, metadata: Metadata) -> list[str]:
        listed = metadata.array(self.key)
        if listed is None:
            return [""] * metadata.block_count
        return [
            "" if i >= len(listed) else self.nonzero if listed[i] else self.zero for i in range(metadata.block_count)
        ]


Role = Periodic | Leading | Trailing | Listed
