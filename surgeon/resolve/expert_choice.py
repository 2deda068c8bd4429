"""Which experts to prune when only their number is said: the least salient, or the least called, of every layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    """sets: layer -> its experts to prune; notes: what the figures left open."""

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
    import numpy as np

    experts = expert_model(model)
    layers = [layer for layer in experts.layers if layer not in gone]
    if not layers:
        raise SurgeonError(f"cannot prune experts: {model.file.path} has no layer with experts")
    number = how_many(amount, experts)
    calls, scores = _figures(experts, measure, imatrix, sums)
    measured = [layer for layer in layers if layer < len(calls) and calls[layer].any()]
    missing = [layer for layer in layers if layer not in measured]
    if any(layer < experts.trunk for layer in missing):
        where = imatrix.path if imatrix is not None else "the imatrix"
        raise SurgeonError(
            f"{where}: has no figures for the experts of layer {spans(missing, 6)}; collect it with surgeon imatrix"
        )
    sets = _lowest(experts, {layer: scores[layer] for layer in measured}, number)
    sets |= _lowest(experts, dict.fromkeys(missing, np.zeros(experts.count)), number)
    return ExpertChoice(sets, tuple(_notes(missing, measured, calls, number)))


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


def _figures(
    experts: ExpertModel, measure: str, imatrix: Imatrix | None, sums: ExpertSums | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The calls of every layer's experts and what ranks them, float64[layers, experts] both."""
    from surgeon.imatrix.experts import calls_of

    if measure not in MEASURES:
        raise SurgeonError(f"--experts-by {measure!r}: must be {' or '.join(MEASURES)}")
    if imatrix is None:
        raise SurgeonError("--prune-experts chooses by an imatrix; give --imatrix, collected with surgeon imatrix")
    if measure == "saliency" and sums is None:
        raise SurgeonError(
            f"{imatrix.path}: has no saliency of experts; collect it with surgeon imatrix, or use --experts-by calls"
        )
    calls = calls_of(imatrix, max(experts.layers) + 1) if sums is None else sums.calls
    if calls is None:
        raise SurgeonError(f"{imatrix.path}: does not count the calls of each expert; collect it as GGUF")
    if calls.shape[1] != experts.count:
        raise SurgeonError(f"{imatrix.path}: is of a model with {calls.shape[1]} experts, this one has {experts.count}")
    return calls, calls if measure == "calls" or sums is None else sums.mean_saliency


def _lowest(experts: ExpertModel, scores: Mapping[int, NDArray[np.float64]], number: int) -> dict[int, frozenset[int]]:
    """The `number` lowest of every layer, of equal ones those with the higher number; of each group its own share,
    chunks whole.
    """
    import numpy as np

    if not scores:
        return {}
    count, chunk = experts.count, experts.chunk
    units = np.stack(list(scores.values())).reshape(len(scores), -1, chunk).sum(axis=2)
    groups = units.reshape(len(scores), experts.groups if chunk == 1 else 1, -1)[:, :, ::-1]  # equal ones: last first
    lowest = np.argsort(groups, axis=2, kind="stable")[:, :, : number // chunk // groups.shape[1]]
    size = groups.shape[2]
    starts = np.arange(groups.shape[1])[None, :, None] * size
    places = (starts + size - 1 - lowest).reshape(len(scores), -1, 1) * chunk + np.arange(chunk)
    assert places.max(initial=0) < count
    return {layer: frozenset(row.ravel().tolist()) for layer, row in zip(scores, places, strict=True)}


def _notes(missing: list[int], measured: list[int], calls: NDArray[np.float64], number: int) -> list[Problem]:
    notes = []
    if missing:
        text = f"the experts of layer {spans(missing, 6)} are not run for text and not measured: the last ones go"
        notes.append(Problem("warning", text))
    idle = {layer: count for layer in measured if (count := int((calls[layer] == 0).sum()))}
    if idle:
        text = f"experts that no token was routed to go first: {sum(idle.values())}, in layer {spans(idle, 6)}"
        more = any(count > number for count in idle.values())
        advice = "; some are kept, unmeasured: collect the imatrix over more text" if more else ""
        notes.append(Problem("warning", text + advice))
    return notes
