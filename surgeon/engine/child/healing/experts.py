"""The experts' part of a feed-forward branch, refitted expert by expert on the tokens that are sent to each.

The branch adds Σ g W_e h over a token's chosen experts e, with g the router's weight and h what ffn_down_exps reads;
shared experts and biases add to that and stay. Changes D_e leave E − Σ D_e (g h) of what the stream lacks, E. That is
one least squares problem over all experts, solved by going through them again and again: each is fitted to what the
others leave, by the ridge of a dense layer. In the first rounds nothing held back is fitted, and each expert's λ and
shrink are chosen; the rounds after them fit all tokens. Kinds of text are not left out in turn for that as in a dense
layer: that would leave many experts few tokens, and what each forgoes the others cannot make up for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.healing.ridge import Fit, Float32, Moments, Sums, best_penalty, solved
from surgeon.engine.child.healing.samples import Samples
from surgeon.engine.child.healing.store import Store
from surgeon.engine.child.healing.streams import CHOSEN, EXPERTS, FACTORS, OUTPUT, Layer
from surgeon.engine.protocol import FEWEST_TOKENS

_ROUNDS = 3  # of more hardly anything comes
_BLOCK = 4096  # tokens at once
_TOLERANCE = 0.05  # as of the other branches

Places = NDArray[np.int64]


class Routing:
    """What the experts of a layer read, of any number of tokens.

    inputs: float32[tokens, used × f]; chosen: the experts' numbers, float32[tokens, used], as streams are kept;
    factors: what each output is multiplied by, float32[tokens, used]. A place is a token's use of an expert.
    """

    def __init__(self, inputs: Float32, chosen: Float32, factors: Float32, experts: int) -> None:
        self.used, self.experts = chosen.shape[1], experts
        self._inputs = inputs.reshape(chosen.size, -1)
        self._factors = factors.reshape(-1, 1)
        numbers = np.asarray(chosen).astype(np.int64).ravel()
        self._places = np.argsort(numbers, kind="stable")
        self._ends = np.searchsorted(numbers[self._places], np.arange(experts + 1))

    @property
    def columns(self) -> int:
        return self._inputs.shape[1]

    def places(self, expert: int) -> Places:
        """The uses of an expert, in the tokens' order."""
        return self._places[self._ends[expert] : self._ends[expert + 1]]

    def blocks(self, places: Places) -> Iterator[tuple[Places, Float32]]:
        """(tokens, g h as float32[n, f]) of these places, block by block."""
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            yield block // self.used, np.asarray(self._inputs[block] * self._factors[block])


@dataclass(frozen=True)
class ExpertBranch:
    """The experts of a layer as its graph has them. weights: float32[experts, d, f]; used: by a token."""

    weights: Float32
    used: int

    def room(self, store: Store) -> dict[str, Float32]:
        """Streams for what its experts read."""
        columns = {EXPERTS: self.used * self.weights.shape[2], CHOSEN: self.used, FACTORS: self.used}
        return {place: store.new(count) for place, count in columns.items()}

    def routing(self, taken: Mapping[str, Float32]) -> Routing:
        return Routing(taken[EXPERTS], taken[CHOSEN], taken[FACTORS], len(self.weights))


def recognised_experts(layer: Layer, weights: Float32, stream: Float32) -> ExpertBranch | str:
    """The layer's experts, checked: Σ g W_e h is what the graph adds by them.

    stream: the layer's input for one chunk. A sentence where the graph does not show them, or adds them otherwise.
    """
    shown = layer.look(stream, {EXPERTS, CHOSEN, FACTORS, OUTPUT})
    if not shown.keys() >= {EXPERTS, CHOSEN, FACTORS, OUTPUT}:
        return "the graph of this architecture does not show what its experts read and how they are weighed"
    used, (experts, rows, _) = shown[CHOSEN].shape[1], weights.shape
    without = layer.look(stream, {OUTPUT}, {EXPERTS: np.zeros((len(stream), used * rows), np.float32)})
    added = shown[OUTPUT] - without[OUTPUT]
    branch, given = ExpertBranch(weights, used), np.zeros_like(added)
    routing = branch.routing(shown)
    for expert in range(experts):
        for tokens, inputs in routing.blocks(routing.places(expert)):
            given[tokens] += inputs @ weights[expert].T
    size = max(float(np.square(added, dtype=np.float64).sum()), 1e-30)
    if float(np.square(given - added, dtype=np.float64).sum()) > _TOLERANCE**2 * size:
        return "what its experts give is not simply weighed and added to the stream in this architecture"
    return branch


@dataclass(frozen=True)
class HealedExperts:
    """choices: expert -> its λ and shrink; few: how many got too few tokens; before, after: as in Fit."""

    choices: dict[int, Fit]
    few: int
    before: float
    after: float


@dataclass
class ExpertFit:
    """The fit of one layer's experts.

    samples: its inputs, float32[tokens, d], are what the stream lacks behind the layer, and in the end what it still
    lacks; changes: float32[experts, f, d], zeros.
    """

    routing: Routing
    samples: Samples
    changes: Float32
    _enough: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._missing, self._chunks = self.samples.inputs, self.samples.chunks
        least = FEWEST_TOKENS * self.routing.columns
        counts = [len(self.routing.places(expert)) for expert in range(self.routing.experts)]
        self._enough = [expert for expert, count in enumerate(counts) if count >= least]

    def heal(self) -> HealedExperts:
        """Fit; `changes` are then to be added to the weights, all zero where a kind of text would do worse."""
        few = self.routing.experts - len(self._enough)
        before = self._errors()
        choices = self._chosen()
        after = self._errors()
        if any(now > then for now, then in zip(after, before, strict=True)):
            choices, after = {}, before
        for expert in self._enough:
            self._put(expert, None)
        for _ in range(_ROUNDS):
            for expert, choice in choices.items():
                sums = self._sums(expert, self.routing.places(expert))
                self._put(expert, solved(sums, choice.penalty) * choice.shrink)
        return HealedExperts(choices, few, float(np.mean(before)), float(np.mean(after)))

    def _chosen(self) -> dict[int, Fit]:
        """λ and shrink of every expert that gains on tokens that are not fitted; `changes` are those without them."""
        choices: dict[int, Fit] = {}
        for _ in range(_ROUNDS):
            for expert in self._enough:
                fit, held = self._parts(expert)
                choice = choices[expert] = best_penalty([fit], [held])
                self._put(expert, solved(fit, choice.penalty) * choice.shrink if choice.shrink else None)
        return {expert: choice for expert, choice in choices.items() if choice.shrink}

    def _parts(self, expert: int) -> tuple[Moments, Moments]:
        """Sums over the tokens that are fitted, and over those held back."""
        places = self.routing.places(expert)
        held = self._chunks.held[places // (self.routing.used * self._chunks.n_ctx)]
        return self._sums(expert, places[~held]), self._sums(expert, places[held])

    def _sums(self, expert: int, places: Places) -> Moments:
        """Over these uses of an expert, of what the other experts leave."""
        change = np.asarray(self.changes[expert])
        sums = Moments(*change.shape)
        for tokens, inputs in self.routing.blocks(places):
            left = self._missing[tokens] + inputs @ change
            sums.add(inputs, left, left, self.samples.weights[tokens])
        return sums

    def _put(self, expert: int, change: Sums | None) -> None:
        """Take the expert's change for another one, None for none."""
        old = np.asarray(self.changes[expert])
        new = np.zeros_like(old) if change is None else change.astype(np.float32)
        for tokens, inputs in self.routing.blocks(self.routing.places(expert)):
            self._missing[tokens] -= inputs @ (new - old)
        self.changes[expert] = new

    def _errors(self) -> list[float]:
        """What the held-back tokens of each kind lack, relative to what the branch shall add."""
        errors = []
        for kind in range(self._chunks.n_kinds):
            left = whole = 0.0
            for missing, wanted, weights in self.samples.blocks(kind, held=True):
                left += float(np.square(missing, dtype=np.float64).sum(axis=1) @ weights)
                whole += float(np.square(wanted, dtype=np.float64).sum(axis=1) @ weights)
            errors.append(left / max(whole, 1e-30))
        return errors
