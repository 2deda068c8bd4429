"""What was measured on whole layers: influence kept beside an importance matrix, damage kept by prune-scan."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.influence import Influence, load_influence
from surgeon.session.kept_scans import OF_ANOTHER_VERSION, kept_scans

Figures = dict[str, dict[int, float]]  # metric key -> layer number -> value


def influence_of(path: Path) -> Influence | None:
    """What lies in the file beside the matrix; a file that has gone since yields nothing."""
    try:
        return load_influence(path, channels=False)
    except (OSError, SurgeonError):
        return None


def influence_figures(influence: Influence | None) -> Figures:
    """Block influence, layer-input modification, the weights' ZD and experts, without layers that were not seen."""
    if influence is None:
        return {}
    values: dict[str, Iterable[float]] = {
        "bi": influence.block_influence.tolist(),
        "lim": influence.layer_input_modification.tolist(),
        "wzd": influence.weight_zd.tolist() if influence.weight_zd is not None else (),
    }
    experts = {} if influence.experts is None else expert_figures(influence.experts)
    return experts | {
        key: {layer: value for layer, value in enumerate(found) if math.isfinite(value)}
        for key, found in values.items()
    }


def expert_figures(sums: ExpertSums) -> Figures:
    """Of layers with experts: how many no token was routed to, and the weight that the least salient quarter gets."""
    idle = {layer: float((sums.calls[layer] == 0).sum()) for layer in sums.layers}
    return {"idle": idle, "low": {layer: sums.weight_of_least(layer, 0.25) for layer in sums.layers}}


def last_damages(folder: Path, identity: str) -> dict[int, float]:
    """KL divergence by layer from the newest scan of the model in `folder`; empty where there is none to read."""
    for kept in kept_scans(folder, identity):
        with suppress(*OF_ANOTHER_VERSION):
            return {
                int(damage["layers"][0]): float(damage["mean_kld"])
                for damage in kept["damages"]
                if len(damage["layers"]) == 1
            }
    return {}
