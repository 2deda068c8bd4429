"""The scores of layers that `surgeon imatrix` collects beside the matrix, as a table and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon.commands.printing.text_table import table

if TYPE_CHECKING:
    from surgeon.imatrix.influence import Influence


def influence_json(influence: Influence) -> list[dict[str, float | int | None]]:
    """One object per layer; null for what was not seen."""
    zd = influence.weight_zd
    return [
        {
            "layer": layer,
            "block_influence": _number(influence.block_influence[layer]),
            "layer_input_modification": _number(influence.layer_input_modification[layer]),
            "weight_zd": None if zd is None else _number(zd[layer]),
        }
        for layer in range(len(influence.layers))
    ]


def influence_table(influence: Influence) -> str:
    """Block influence (ShortGPT), layer-input modification and the weights' ZD (Layer-wise quantization)."""
    rows = [
        [
            str(row["layer"]),
            _cell(row["block_influence"], 1, ""),
            _cell(row["layer_input_modification"], 1, ""),
            _cell(row["weight_zd"], 100, "%"),
        ]
        for row in influence_json(influence)
    ]
    return table(["layer", "block influence", "LIM", "weights' ZD"], rows)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cell(value: float | None, factor: int, unit: str) -> str:
    return "-" if value is None else f"{factor * value:.{2 if unit else 4}f}{unit}"
