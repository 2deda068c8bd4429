"""What llama.cpp works out from the number of layers where the file does not say it.

A pruned model has another number of layers, so the result would be another one. Where a key states it outright, pruning
writes that key; where none does, pruning is refused with the reason.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from surgeon.anatomy.roles import Metadata
from surgeon.gguf.values import ValueType

SIGMOID, SOFTMAX = 2, 1
MISSING = -1  # a key that the loader insists on is not there
_DEEPSEEK2_LITE_VOCABULARY, _GLM_4_7_LITE_VOCABULARY = 128256, 154880


def always(metadata: Metadata, layers: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Derived:
    """A value that depends on the number of layers (those of multi-token prediction not counted).

    value: what llama.cpp takes for a model of `layers` layers; key, type: where it can be stated; readable: whether the
    loader reads that key in a model of so many layers; fatal: the model does not load with another value; absorbed_by:
    an F32 tensor of each layer that can be multiplied by sqrt(new value / old value) to the same effect.
    """

    what: str
    value: Callable[[Metadata, int], float | int | str]
    key: str = ""
    type: ValueType = ValueType.UINT32
    readable: Callable[[Metadata, int], bool] = always
    fatal: bool = False
    absorbed_by: str = ""


def float32(value: float) -> float:
    """`value` rounded to single precision, as llama.cpp computes."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _head_scale(metadata: Metadata) -> float:
    heads = metadata.integer("attention.head_count", 1) or 1
    return metadata.integer("attention.key_length", metadata.integer("embedding_length") // heads)


def _gemma_scale(layers_of_27b: int) -> Callable[[Metadata, int], float]:
    """The divisor under the root of the attention scale: the embedding shared among the heads in the 27B model only."""

    def divisor(metadata: Metadata, layers: int) -> float:
        if layers == layers_of_27b:
            return metadata.integer("embedding_length") // (metadata.integer("attention.head_count", 1) or 1)
        return _head_scale(metadata)

    return divisor


def _deepseek2_lite(metadata: Metadata, layers: int) -> bool:
    return layers in (26, 27) or (layers == 48 and metadata.vocabulary == _DEEPSEEK2_LITE_VOCABULARY)


def _q_rank(metadata: Metadata, layers: int) -> int:
    return 0 if _deepseek2_lite(metadata, layers) else metadata.integer("attention.q_lora_rank", MISSING)


def _gating(metadata: Metadata, layers: int) -> int:
    stated = metadata.integer("expert_gating_func")
    glm = layers in (47, 48) and metadata.vocabulary == _GLM_4_7_LITE_VOCABULARY
    return stated or (SIGMOID if glm else SOFTMAX)


def _minicpm_scale(metadata: Metadata, layers: int) -> float:
    stated = metadata.get("residual_scale")
    return stated if isinstance(stated, float) else float32(float32(1.4) / float32(math.sqrt(layers)))


GEMMA2_SCALE = Derived("the divisor under the root of the attention scale", _gemma_scale(46))
# The queries go from the norm through RoPE straight to the scale: its root factor can sit in the norm's weights.
GEMMA3_SCALE = Derived("the divisor under the root of the attention scale", _gemma_scale(62), absorbed_by="attn_q_norm")
EXAONE4_WINDOW = Derived(
    "the attention",
    lambda metadata, layers: "sliding windows and global layers without RoPE" if layers == 64 else "all global",
)
AT_LEAST_64 = Derived(
    "the tensors of a layer",
    lambda metadata, layers: "with attn_q_norm and attn_k_norm" if layers >= 64 else "without attn_q_norm",
    fatal=True,
)
BAICHUAN_POSITIONS = Derived(
    "the position encoding", lambda metadata, layers: {32: "RoPE", 40: "ALiBi"}.get(layers, "none")
)
DEEPSEEK2_Q_RANK = Derived(
    "the rank of attn_q_a",
    _q_rank,
    "attention.q_lora_rank",
    readable=lambda metadata, layers: not _deepseek2_lite(metadata, layers),
    fatal=True,
)
DEEPSEEK2_GATING = Derived("the gating of the experts", _gating, "expert_gating_func")
MINICPM_SCALE = Derived("the scale of each layer's output", _minicpm_scale, "residual_scale", ValueType.FLOAT32)
MINICPM3_SCALE = Derived("the scale of each layer's output", lambda metadata, layers: float32(1.4 / math.sqrt(layers)))
MINIMAX_SLOPES = Derived(
    "the decay of every lightning attention layer", lambda metadata, layers: f"by the place among {layers} layers"
)
