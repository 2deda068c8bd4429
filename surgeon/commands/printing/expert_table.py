"""What an imatrix knows of experts, as a table of layers and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.commands.printing.text_table import table

if TYPE_CHECKING:
    from surgeon.imatrix.experts import ExpertSums
    from surgeon.imatrix.imatrix import Imatrix

_NAMED = 6  # of the least salient experts

NO_EXPERTS = "has no calls of experts: it is of a model without any, or in the old format"


def known_experts(imatrix: Imatrix, sums: ExpertSums | None) -> ExpertSums | None:
    """The sums, or of another program's imatrix the calls alone (its weights and saliencies are 0); None: nothing."""
    import numpy as np

    from surgeon.imatrix.experts import ExpertSums, calls_of
    from surgeon.model.layer_names import split_layer

    if sums is not None:
        return sums
    layers = [layer for name in imatrix.entries if (layer := split_layer(name)[0]) is not None]
    calls = calls_of(imatrix, max(layers, default=-1) + 1)
    return None if calls is None else ExpertSums(calls, np.zeros_like(calls), np.zeros_like(calls))


def expert_json(sums: ExpertSums) -> list[dict[str, Any]]:
    """One object per layer that has experts; calls, gate and saliency hold one number per expert.

    gate: sum of the router's weights; saliency: mean over the expert's tokens of weight × |output|. Null where only
    calls are known.
    """
    measured, saliency = bool(sums.gate.any()), sums.mean_saliency
    return [
        {
            "layer": layer,
            "calls": [int(value) for value in sums.calls[layer]],
            "gate": [float(value) for value in sums.gate[layer]] if measured else None,
            "saliency": [float(value) for value in saliency[layer]] if measured else None,
        }
        for layer in sums.layers
    ]


def expert_table(sums: ExpertSums) -> str:
    """A line per layer: how evenly the calls are spread, and the experts that add least."""
    measured = bool(sums.gate.any())
    rows = [_row(sums, layer, measured) for layer in sums.layers]
    head = ["layer", "experts", "never called", "least calls", "most calls", "weight of least 25%"]
    head += ["saliency least", "median", "most"]
    return table([*head, "least salient" if measured else "least called"], rows)


def _row(sums: ExpertSums, layer: int, measured: bool) -> list[str]:
    import numpy as np

    calls, saliency = sums.calls[layer], sums.mean_saliency[layer]
    ranked = np.argsort(saliency if measured else calls, kind="stable")
    share = sums.weight_of_least(layer, 0.25)
    figures = [f"{value:.4g}" for value in (saliency.min(), np.median(saliency), saliency.max())]
    return [
        str(layer),
        str(len(calls)),
        str(int((calls == 0).sum())),
        f"{100 * calls.min() / calls.sum():.2f}%",
        f"{100 * calls.max() / calls.sum():.2f}%",
        *([f"{100 * share:.1f}%", *figures] if measured else ["-"] * 4),
        " ".join(str(expert) for expert in ranked[:_NAMED]),
    ]
