"""What a model takes of a graphics card beside its weights, and which weights lie on the card.

With all layers offloaded llama.cpp keeps the token embeddings in the computer's memory (unless they are the head too)
and everything else on the card: weights, the cache of keys and values with the states of recurrent layers, and the
compute buffers. The cache follows from the hyper-parameters (llama-kv-cache.cpp, llama-hparams.cpp: `n_embd_k_gqa`,
`n_embd_r`, `n_embd_s`); the compute buffers only llama.cpp itself knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from surgeon.anatomy import layer_roles
from surgeon.anatomy.roles import Metadata
from surgeon.errors import UsageError
from surgeon.model.model import Model
from surgeon_kernels.formats import FORMATS

_PAD = 256  # cells of the cache are a multiple of it
_FLOAT = 4  # bytes of a value of a recurrent state
_BOTH = frozenset({"falcon-h1"})  # attention and a recurrent state in every layer
CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "IQ4_NL", "Q4_1", "Q4_0")


@dataclass(frozen=True)
class Card:
    """nbytes: its memory; reserve: of it for the driver and others; n_ctx: tokens of all sequences together."""

    nbytes: int
    n_ctx: int = 4096
    parallel: int = 1
    cache_type: str = "F16"
    n_ubatch: int = 512
    reserve: int = 512 << 20


@dataclass(frozen=True)
class Demand:
    """Bytes on the card beside the weights."""

    cache: int
    compute: int
    reserve: int

    @property
    def total(self) -> int:
        return self.cache + self.compute + self.reserve


def cache_type(text: str) -> str:
    """`q8_0` -> `Q8_0`. Raises UsageError for what llama.cpp's --cache-type-k does not take."""
    if text.upper() not in CACHE_TYPES:
        raise UsageError(f"--cache-type {text}: choose among {' '.join(name.lower() for name in CACHE_TYPES)}")
    return text.upper()


def on_host(model: Model) -> frozenset[str]:
    """The tensors that stay in the computer's memory with every layer offloaded."""
    names = {tensor.name for tensor in model.others}
    tied = "output.weight" not in names
    return frozenset(
        name for name in names if name == "per_layer_token_embd.weight" or (name == "token_embd.weight" and not tied)
    )


def cache_bytes(model: Model, card: Card) -> int:
    """Keys, values and recurrent states of all sequences. Raises UsageError where rows do not fit the cache's type."""
    return sum(_layer_bytes(model, card))


def _layer_bytes(model: Model, card: Card) -> Iterator[int]:
    roles = layer_roles(model)
    for layer in range(Metadata(model.architecture, model.file.kv).trunk):
        words = roles.get(layer, "").split()
        recurrent = "recurrent" in words or not _number(model, "attention.head_count", layer, 0)
        heads = _number(model, "attention.head_count_kv", layer, _number(model, "attention.head_count", layer, 0))
        recurrent = recurrent or not heads
        if "shared" not in words and not recurrent:
            yield _attention(model, card, layer, int(heads), local="local" in words)
        if recurrent or model.architecture in _BOTH:
            yield _FLOAT * card.parallel * _state_values(model)


def _attention(model: Model, card: Card, layer: int, heads: int, *, local: bool) -> int:
    """Bytes of one layer's keys and values."""
    per_head = _number(model, "embedding_length", layer, 0) // max(1, _number(model, "attention.head_count", layer, 1))
    suffix = "_swa" if local else ""
    widths = []
    for part in ("key", "value"):
        width = _number(model, f"attention.{part}_length", layer, per_head)
        widths.append(int(_number(model, f"attention.{part}_length{suffix}", layer, width)))
    latent = _number(model, "attention.kv_lora_rank", layer, 0) and model.hparam("attention.key_length_mla") is not None
    values = widths[:1] if latent else widths
    known = FORMATS[card.cache_type]
    if any(width * heads % known.block for width in values):
        raise UsageError(f"--cache-type {card.cache_type.lower()}: keys of {widths[0]} values do not fill its blocks")
    return sum(_cells(model, card, local=local) * known.row_bytes(width * heads) for width in values)


def _cells(model: Model, card: Card, *, local: bool) -> int:
    """Tokens that a layer's cache holds, over all sequences."""
    per_sequence = -(-card.n_ctx // card.parallel)
    window = int(_number(model, "attention.sliding_window", 0, 0)) if local else 0
    if window:
        per_sequence = min(per_sequence, window + card.n_ubatch)
    return card.parallel * (-(-per_sequence // _PAD) * _PAD)


def _state_values(model: Model) -> int:
    """Values that a recurrent layer remembers of one sequence: of its convolution and of its state."""
    width = int(_number(model, "embedding_length", 0, 0))
    head = int(_number(model, "wkv.head_size", 0, 0))
    if head:
        return 2 * width + width * head
    short = int(_number(model, "shortconv.l_cache", 0, 0))
    if short:
        return width * (short - 1)
    inner, state = int(_number(model, "ssm.inner_size", 0, 0)), int(_number(model, "ssm.state_size", 0, 0))
    kernel, groups = int(_number(model, "ssm.conv_kernel", 0, 0)), int(_number(model, "ssm.group_count", 0, 0))
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner


def _number(model: Model, key: str, layer: int, default: float) -> float:
    """The value for a layer, of a key that may hold one number or one per layer."""
    value: Any = model.hparam(key)
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else None
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else default
