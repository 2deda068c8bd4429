"""What the mixes need to know of a model's metadata, and what llama.cpp's loader would refuse in it.

`--override-kv` counts: llama-quantize hands the overrides to its loader, so they steer the mixes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from surgeon.anatomy import ARCHITECTURES
from surgeon.errors import SurgeonError
from surgeon.model.architectures import quirks_of
from surgeon.model.layer_keys import wrong_length
from surgeon.model.model import Model
from surgeon.plan.plan import KVOverride
from surgeon.resolve.metadata import concrete

_REQUIRED = ("context_length", "embedding_length", "block_count")


@dataclass(frozen=True, slots=True)
class Hparams:
    """block_count: all blocks, those of multi-token prediction included; n_gqa: heads per KV head of layer 0, or 0."""

    architecture: str
    block_count: int
    n_expert: int
    n_gqa: int
    is_70b: bool


def read_hparams(model: Model, overrides: Sequence[KVOverride] = ()) -> Hparams:
    get = _Reader(model, overrides)
    architecture = model.architecture
    block_count = get.integer("block_count", model.block_count)
    n_expert = get.integer("expert_count", 0)
    if quirks_of(architecture).single_expert_is_dense and n_expert <= 1:
        n_expert = 0
    heads = get.integer("attention.head_count", 0)
    kv_heads = get.integer("attention.head_count_kv", heads)
    layers = block_count - get.integer("nextn_predict_layers", 0)
    return Hparams(
        architecture,
        block_count,
        n_expert,
        heads // kv_heads if kv_heads else 0,
        _is_70b(architecture, layers, n_expert, heads != kv_heads),
    )


def _is_70b(architecture: str, layers: int, n_expert: int, grouped: bool) -> bool:
    """The models llama.cpp files under 70B, whose few attn_v are shared by many heads."""
    quirks = quirks_of(architecture)
    if not layers or layers != quirks.layers_of_70b:
        return False
    return not quirks.grouped_70b or (grouped and n_expert != 8)


def loader_refusal(model: Model, overrides: Sequence[KVOverride] = ()) -> str | None:
    """Why llama.cpp's loader would refuse the metadata, or None."""
    if model.architecture not in ARCHITECTURES:
        return f"llama.cpp knows no architecture {model.architecture!r}"
    if model.architecture == "clip":
        return None
    get = _Reader(model, overrides)
    for key in _REQUIRED:
        if get.value(key) is None:
            return f"the key {model.architecture}.{key} is missing"
    return wrong_length(model, get.integer("block_count", 0))


class _Reader:
    """Hyper-parameters with the overrides in their place."""

    def __init__(self, model: Model, overrides: Sequence[KVOverride]) -> None:
        self.model = model
        self.overrides = {override.key: override for override in overrides}

    def value(self, key: str) -> Any:
        full = f"{self.model.architecture}.{key}"
        stored = self.model.file.kv.get(full)
        if full in self.overrides and (stored is None or stored.element_type is None):
            with suppress(SurgeonError):  # what does not fit the key's type is an error of the pre-flight list
                return concrete(self.overrides[full], stored).value
        return None if stored is None else stored.small()

    def integer(self, key: str, default: int) -> int:
        """The number, or the first entry of an array: the mixes look at layer 0 only."""
        value = self.value(key)
        if isinstance(value, list):
            value = value[0] if value else None
        return value if isinstance(value, int) and not isinstance(value, bool) else default
