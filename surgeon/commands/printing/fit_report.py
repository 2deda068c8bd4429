"""What `surgeon fit` prints: the outcome beside the mix, and where the bytes went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.commands.printing.text_table import table
from surgeon.figures import divergence, memory, size
from surgeon.fit.allocation import Fit, Mixed, shares
from surgeon.fit.fragility import Part, by_kind, parts_of, types_of
from surgeon.plan.recipe import Recipe, file_sha256

if TYPE_CHECKING:
    from surgeon.fit.cost_model import CostModel
    from surgeon.fit.vram import Demand
    from surgeon.imatrix.imatrix import Imatrix

Figures = dict[str, dict[str, Any]]


def report(fit: Fit, mix: Mixed | None, held_out: Figures, used: float, costs: CostModel) -> str:
    """The tables as text. used: share of what was allowed; held_out: label -> figures, empty where unmeasured."""
    told = [_outcomes(fit, mix, held_out), f"{100 * used:.2f}% of the size is used", "", _kinds(fit), ""]
    return "\n".join([*told, _fragile(parts_of(fit.resolution.model, costs))])


def _fragile(parts: list[Part]) -> str:
    """The probes: a row for each kind, its stretches of the depth side by side."""
    kinds = by_kind(parts)
    stretches = list(dict.fromkeys(part.layers for part in parts if part.layers))
    rows = []
    for kind, own in kinds.items():
        cells = {part.layers: f"{part.fragility:.5f}" for part in own}
        whole = sum(part.low.kld for part in own)
        alone = cells.get("", "")
        low = "/".join(dict.fromkeys(types_of(part.low) for part in own))
        rows.append([kind, *(cells.get(layers, "") for layers in stretches), alone, divergence(whole), low])
    header = ["fragile", *(f"layers {layers}" for layers in stretches), "outside", "KLD"]
    lines = table(header, [row[:-1] for row in rows]).split("\n")
    types = ["  at", *(f"  {row[-1]}" for row in rows)]
    note = "fragile: measured KL divergence per million weights with this kind alone, there, at a low type"
    return "\n".join([*(line + kind for line, kind in zip(lines, types, strict=True)), note])


def recipe_of(fit: Fit, imatrix: Imatrix | None) -> Recipe:
    """What repeats the fit."""
    path, moments = str(imatrix.path) if imatrix else None, fit.resolution.moments
    return Recipe(
        fit.plan, path, file_sha256(path) if path else None,
        made_from=f"surgeon fit, predicted KLD {fit.predicted.kld:.4f}",
        moments=str(moments.path) if moments else None, moments_digest=moments.digest if moments else None,
    )  # fmt: skip


def _outcomes(fit: Fit, mix: Mixed | None, held_out: Figures) -> str:
    header = ["", "size", "bpw", "predicted KLD", *(["measured KLD", "same top"] if held_out else [])]
    rows = [["fit", *_cells(fit), *_measured(held_out.get("fit"))]]
    if mix is not None:
        rows.append([mix.name, *_cells(mix), *_measured(held_out.get(mix.name))])
        stock = held_out.get(f"{mix.name} stock")
        if stock is not None:
            size_and_bits = _cells(mix)[:2]
            rows.append([f"{mix.name}, stock encoder", *size_and_bits, "", *_measured(stock)])
    return table(header, rows)


def _cells(outcome: Fit | Mixed) -> list[str]:
    made, predicted = outcome.resolution, outcome.predicted
    return [size(made.total_bytes), f"{made.bpw:.3f}", f"{predicted.kld:.5f} ± {predicted.error:.5f}"]


def _measured(figures: dict[str, Any] | None) -> list[str]:
    if figures is None:
        return []
    return [f"{figures['mean_kld']:.5f} ± {figures['mean_kld_error']:.5f}", f"{100 * figures['same_top']:.2f}%"]


def _kinds(fit: Fit) -> str:
    """Where the bytes went, the largest first."""
    rows = []
    for kind, (weights, nbytes, cost, types) in sorted(shares(fit).items(), key=lambda item: -item[1][1]):
        spread = ", ".join(f"{count} {name}" for name, count in sorted(types.items(), key=lambda item: -item[1]))
        rows.append([kind, size(nbytes), f"{8 * nbytes / weights:.2f}", divergence(cost), spread])
    text = table(["kind", "bytes", "bpw", "KLD"], [row[:4] for row in rows])
    lines = text.split("\n")
    return "\n".join([f"{lines[0]}  types", *(f"{line}  {row[4]}" for line, row in zip(lines[1:], rows, strict=True))])


def card_line(fit: Fit, demand: Demand, card: int, host: frozenset[str]) -> str:
    """`card 24.0 GiB: weights …`: what lies on it with every layer offloaded."""
    weights = sum(op.nbytes for op in fit.resolution.kept if op.source not in host)
    parts = f"weights {memory(weights)}, cache {memory(demand.cache)}, compute {memory(demand.compute)}"
    left = card - weights - demand.total
    return f"card {memory(card)}: {parts}, reserve {memory(demand.reserve)}, free {memory(left)}"


def as_json(fit: Fit, mix: Mixed | None, held_out: Figures, used: float, costs: CostModel) -> dict[str, Any]:
    """The object of `--json`: outcome, mix, measured figures, and per tensor its type, bytes, cost and reason."""

    def outcome(one: Fit | Mixed) -> dict[str, Any]:
        predicted = {"kld": one.predicted.kld, "error": one.predicted.error}
        return {"bytes": one.resolution.total_bytes, "bpw": one.resolution.bpw, "predicted": predicted}

    tensors = [
        {"name": op.source, "type": op.to_type, "bytes": op.nbytes, "reason": op.reason,
         "predicted_kld": costs.cost(op.source, op.to_type) or 0.0, "error": costs.error(op.source, op.to_type) or 0.0}
        for op in fit.resolution.kept
    ]  # fmt: skip
    return {
        "used": used,
        "fit": outcome(fit),
        "mix": {"type": mix.name, **outcome(mix)} if mix else None,
        "held_out": held_out,
        "sensitivities": [_sensitivity(part, costs) for part in parts_of(fit.resolution.model, costs)],
        "tensors": tensors,
    }


def _sensitivity(part: Part, costs: CostModel) -> dict[str, Any]:
    """What was measured of one kind in a stretch of the depth, and the curve made of it."""
    curve = costs.curves[part.group]
    probes = {
        level: {"types": types_of(probe), "kld": probe.kld, "error": probe.error}
        for level, probe in (("low", part.low), ("middle", part.middle))
    }
    return {
        "kind": part.kind, "layers": part.layers, "weights": part.weights, **probes,
        "fragility": part.fragility, "power": curve.power,
    }  # fmt: skip
