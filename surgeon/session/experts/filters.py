"""What the filter of the view of experts understands: terms joined by blanks, all of which must hold.

calls<10  calls<0.5%       tokens routed to the expert; with % the share of its layer's
weight<1%                  share of the router's weight in its layer
saliency<0.05              mean weight × |output|
place<25%                  place in its layer by the figure shown, the lowest 0 %
layer>=30  expert<32       numbers
is:idle  is:pruned         no token was routed to it; the plan prunes it; !is:pruned is the opposite
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
_OPERATORS: dict[str, Callable[[Float64, float], Bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_TERM = re.compile(r"([a-z]+)(>=|<=|>|<|=)([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)(%?)", re.IGNORECASE)
_FLAG = re.compile(r"(!?)is:(idle|pruned)")
NUMBERS = ("calls", "weight", "saliency", "place", "layer", "expert")
EXAMPLE = "calls<10 · saliency<0.05 · weight<1% · place<25% · layer>=30 · is:idle · !is:pruned"


@dataclass(frozen=True, eq=False)
class ExpertFigures:
    """layers: numbers, int[rows]; the others float64[rows, experts], NaN where nothing was measured."""

    layers: NDArray[np.int64]
    calls: Float64
    saliency: Float64
    gate: Float64


@dataclass(frozen=True)
class ExpertFilter:
    """text: as typed; numbers: (key, operator, value, whether in percent); flags: (is:, whether its opposite)."""

    text: str
    numbers: tuple[tuple[str, str, float, bool], ...]
    flags: tuple[tuple[str, bool], ...]

    def accepts(self, figures: ExpertFigures, *, places: Float64, pruned: Bool) -> Bool:
        """bool[rows, experts]; what was not measured meets no term about it."""
        left = np.ones(figures.calls.shape, np.bool_)
        for key, sign, value, percent in self.numbers:
            found = _numbers(key, figures, places, percent)
            left &= _OPERATORS[sign](found, value / 100 if percent else value)
        for flag, opposite in self.flags:
            left &= (figures.calls == 0 if flag == "idle" else pruned) != opposite
        return left


def _numbers(key: str, figures: ExpertFigures, places: Float64, percent: bool) -> Float64:
    if key == "layer":
        return np.broadcast_to(figures.layers[:, None], places.shape).astype(np.float64)
    if key == "expert":
        return np.broadcast_to(np.arange(places.shape[1]), places.shape).astype(np.float64)
    values = {"calls": figures.calls, "weight": figures.gate, "saliency": figures.saliency, "place": places}[key]
    if percent and key != "place":
        totals = values.sum(axis=1, keepdims=True)
        shares: Float64 = np.divide(values, totals, out=np.full_like(values, np.nan), where=totals > 0)
        return shares
    return values


def parse_expert_filter(text: str) -> ExpertFilter | None:
    """The filter that `text` states, None for an empty one. Raises ValueError with one line for the user."""
    numbers, flags = [], []
    for word in text.split():
        term, flag = _TERM.fullmatch(word), _FLAG.fullmatch(word)
        if flag is not None:
            flags.append((flag[2], bool(flag[1])))
        elif term is not None and term[1].lower() in NUMBERS:
            numbers.append((term[1].lower(), term[2], float(term[3]), bool(term[4])))
        else:
            raise ValueError(f"{word[:40]}: write terms such as {EXAMPLE}")
        if term is not None and (term[1].lower() == "weight") != bool(term[4]) and term[1].lower() != "calls":
            _refuse_unit(term[1].lower(), word)
    return ExpertFilter(text, tuple(numbers), tuple(flags)) if numbers or flags else None


def _refuse_unit(key: str, word: str) -> None:
    """The router's weight and places are shares; saliency and numbers of layers and experts are none."""
    if key == "weight":
        raise ValueError(f"{word[:40]}: write the share of the layer's weight, weight<1%")
    if key != "place":
        raise ValueError(f"{word[:40]}: {key} is no share; leave out the %")
