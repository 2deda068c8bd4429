"""Which tensors are probed together: those of one kind in one stretch of the depth."""

from __future__ import annotations

import re

from surgeon.model.model import Model
from surgeon.resolve.tensor_facts import TensorFacts, facts_of

# Models that store every expert as a tensor of its own: `ffn_down.3` is one of the experts `ffn_down`.
_EXPERT = re.compile(r"\.\d+$")
_BANDS = ((60, 5), (28, 4), (12, 3), (4, 2))  # from so many layers on, so many bands


def band_count(n_layer: int) -> int:
    """Into how many bands the depth is divided."""
    return next((bands for least, bands in _BANDS if n_layer >= least), 1)


def kind_of(facts: TensorFacts) -> str:
    """`ffn_down` of `blk.7.ffn_down.weight`; all experts are one kind."""
    return _EXPERT.sub("", facts.tensor.short)


def group_of(facts: TensorFacts, n_layer: int) -> str:
    """`ffn_down@0` for a tensor of the first band, the kind alone outside the layers (`token_embd`, `output`)."""
    layer = facts.tensor.layer
    if layer is None:
        return kind_of(facts)
    bands = band_count(n_layer)
    return f"{kind_of(facts)}@{min(bands - 1, layer * bands // max(1, n_layer))}"


def groups_of(model: Model) -> dict[str, tuple[TensorFacts, ...]]:
    """Group -> its tensors, of all that may be quantized; in order of depth, then as stored."""
    found: dict[str, list[TensorFacts]] = {}
    for facts in facts_of(model).by_layer:
        if facts.kept is None:
            found.setdefault(group_of(facts, model.block_count), []).append(facts)
    return {group: tuple(members) for group, members in found.items()}


def layers_of(members: tuple[TensorFacts, ...]) -> str:
    """`0-3`, or '' for what is outside the layers."""
    layers = sorted({facts.tensor.layer for facts in members if facts.tensor.layer is not None})
    if not layers:
        return ""
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
