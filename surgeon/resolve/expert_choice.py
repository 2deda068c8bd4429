"""Which experts to prune when only their number is said: the least salient, or the least called, of every layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from surgeon.anatomy import expert_model
from surgeon.anatomy.expert_pruning import ExpertModel
from surgeon.errors import SurgeonError
from surgeon.layer_lists import spans
from surgeon.model.model import Model
from surgeon.problems import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from surgeon.imatrix.experts import ExpertSums
    from surgeon.imatrix.imatrix import Imatrix

MEASURES = ("saliency", "calls")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%?)")


@dataclass(frozen=True, slots=True)
class ExpertChoice:
    """sets: layer -> its experts to prune; notes: what the figures could not tell."""

    sets: dict[int, frozenset[int]]
    notes: tuple[Problem, ...] = ()


def choose_experts(
    model: Model,
    amount: str,
    measure: str,
    imatrix: Imatrix | None,
    sums: ExpertSums | None,
    gone: frozenset[int] = frozenset(),
) -> ExpertChoice:
    """The experts with the lowest figure, the same number in every layer that is not in `gone`.

    amount: `25%` (rounded down) or `16`; measure: `saliency` or `calls`. Of groups, each loses its own share.
    Raises SurgeonError where the amount or the figures do not fit the model.
    """
    experts = expert_model(model)
    layers = [layer for layer in experts.layers if layer not in gone]
    if not layers:
        raise SurgeonError(f"cannot prune experts: {model.file.path} has no layer with experts")
    number = how_many(amount, experts)
    scores = _scores(experts, measure, imatrix, sums)
    measured = [layer for layer in layers if layer < len(scores) and scores[layer] is not None]
    missing = [layer for layer in layers if layer not in measured]
    if any(layer < experts.trunk for layer in missing):
        where = imatrix.path if imatrix is not None else "the imatrix"
        raise SurgeonError(
            f"{where}: knows nothing of the experts of layer {spans(missing, 6)}; collect it with surgeon imatrix"
        )
    sets = {layer: _lowest(experts, scores[layer] or [], number) for layer in measured}
    sets |= {layer: _lowest(experts, [0.0] * experts.count, number) for layer in missing}
    return ExpertChoice(sets, tuple(_notes(missing, measured, scores, number)))


def how_many(amount: str, experts: ExpertModel) -> int:
    """The number to prune in every layer. Raises SurgeonError for none, for all, and for shares of groups."""
    match = _AMOUNT.fullmatch(amount.strip())
    if match is None or (not match[2] and "." in match[1]):
        raise SurgeonError(f"--prune-experts {amount!r}: write a number of experts, or a share such as 25%")
    share = int(Fraction(match[1]) * experts.count / 100) // experts.unit * experts.unit
    number = share if match[2] else int(match[1])
    if number % experts.unit:
        below = number // experts.unit * experts.unit
        kind = f"{experts.groups} groups" if experts.groups > 1 else f"neighbourhoods of {experts.chunk}"
        near = f"{below} or {below + experts.unit}" if below else str(experts.unit)
        raise SurgeonError(f"--prune-experts {amount}: the experts are in {kind}; prune {near}")
    if not 0 < number < experts.count:
        raise SurgeonError(f"--prune-experts {amount}: that is {number} of {experts.count} experts")
    return number


def _scores(
    experts: ExpertModel, measure: str, imatrix: Imatrix | None, sums: ExpertSums | None
) -> list[list[float] | None]:
    """Of every layer the figures of its experts, None where nothing is known."""
    from surgeon.imatrix.experts import calls_of

    if measure not in MEASURES:
        raise SurgeonError(f"--experts-by {measure!r}: must be {' or '.join(MEASURES)}")
    if imatrix is None:
        raise SurgeonError("--prune-experts chooses by an imatrix; give --imatrix, collected with surgeon imatrix")
    if measure == "calls":
        calls = calls_of(imatrix, max(experts.layers) + 1) if sums is None else sums.calls
        if calls is None:
            raise SurgeonError(f"{imatrix.path}: does not count the calls of each expert; collect it as GGUF")
        table = calls
    elif sums is None:
        raise SurgeonError(
            f"{imatrix.path}: knows no saliency of experts; collect it with surgeon imatrix, or use --experts-by calls"
        )
    else:
        calls, table = sums.calls, sums.mean_saliency
    if table.shape[1] != experts.count:
        raise SurgeonError(f"{imatrix.path}: is of a model with {table.shape[1]} experts, this one has {experts.count}")
    return [_row(table[layer]) if calls[layer].any() else None for layer in range(len(table))]


def _row(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values]


def _lowest(experts: ExpertModel, scores: list[float], number: int) -> frozenset[int]:
    """The `number` lowest, of equal ones those with the higher number; of each group its own share, chunks whole."""
    if experts.chunk > 1:
        starts = range(0, experts.count, experts.chunk)
        ranked = sorted(starts, key=lambda start: (sum(scores[start : start + experts.chunk]), -start))
        chosen = ranked[: number // experts.chunk]
        return frozenset(expert for start in chosen for expert in range(start, start + experts.chunk))
    size = experts.count // experts.groups
    gone: set[int] = set()
    for start in range(0, experts.count, size):
        ranked = sorted(range(start, start + size), key=lambda expert: (scores[expert], -expert))
        gone.update(ranked[: number // experts.groups])
    return frozenset(gone)


def _notes(missing: list[int], measured: list[int], scores: list[list[float] | None], number: int) -> list[Problem]:
    notes = []
    if missing:
        text = f"the experts of layer {spans(missing, 6)} are not run for text and not measured: the last ones go"
        notes.append(Problem("warning", text))
    silent = {layer: count for layer in measured if (count := sum(score == 0 for score in scores[layer] or []))}
    if silent:
        text = f"{sum(silent.values())} experts were never called, in layer {spans(silent, 6)}"
        more = any(count > number for count in silent.values())
        advice = "; more than are pruned: collect the imatrix over more text" if more else ""
        notes.append(Problem("warning", f"{text}; they are pruned first{advice}"))
    return notes
