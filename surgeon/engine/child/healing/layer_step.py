"""One layer that stays: its branches recognised, refitted, and the stream carried behind it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from surgeon.engine.child.healing.branches import Branch, Healed, heal
from surgeon.engine.child.healing.experts import ExpertBranch, ExpertFit, HealedExperts, recognised_experts
from surgeon.engine.child.healing.ridge import Float32
from surgeon.engine.child.healing.runner import Runner
from surgeon.engine.child.healing.samples import Samples, token_weights
from surgeon.engine.child.healing.streams import ATTENTION, EXPERTS, FEED_FORWARD, MIDDLE, OUTPUT, Layer
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import FEWEST_TOKENS, HealedMatrix, HealLayer, Message

_TOLERANCE = 0.05  # of a branch computed from its weight, against the graph's: back ends round what goes in
_BLOCK = 4096  # tokens at once


@dataclass
class Pair:
    """The unpruned model's stream (goal) and the healed one's at one place; one array as long as they are the same."""

    goal: Float32
    healed: Float32

    @property
    def same(self) -> bool:
        return self.goal is self.healed


class LayerStep:
    """A kept layer and the pruned ones behind it.

    heals: which of `attn_output`, `ffn_down`, `ffn_down_exps` are refitted. `result` holds the streams behind it when
    `messages` is through.
    """

    def __init__(self, runner: Runner, layer: HealLayer, gap: list[HealLayer], pair: Pair, heals: set[str]) -> None:
        self._runner, self._spec, self._gap, self._before, self._heals = runner, layer, gap, pair, heals
        self._branches: dict[str, Branch] = {}
        self._experts: ExpertBranch | None = None
        self.result = pair

    def messages(self) -> Iterator[Message]:
        """Runs of the layer, and a HealedMatrix per matrix refitted. Raises EngineError where it cannot be healed."""
        layer = self._runner.opened(self._spec)
        try:
            self._branches = recognised(layer, self._spec, self._before.goal[: self._runner.n_ctx])
            yield from self._recognise_experts(layer)
            middle, behind = self._stream(), self._stream()
            # Before the first gap the healed model has the same inputs, so one run serves both.
            inputs = self._room() if self._before.same else {}
            yield from self._runner.run(layer, self._before.goal, inputs | {MIDDLE: middle, OUTPUT: behind}, OUTPUT)
            self._runner.check(self._spec.number, behind)
            goal = yield from self._behind_gap(behind)
            self.result = Pair(goal, (yield from self._healed_stream(layer, middle, behind, inputs, goal)))
        finally:
            layer.close()

    def _stream(self) -> Float32:
        return self._runner.store.new(self._before.goal.shape[1])

    def _columns(self, kind: str) -> Float32:
        return self._runner.store.new(self._branches[kind].weight.shape[1])

    def _recognise_experts(self, layer: Layer) -> Iterator[Message]:
        """Finds the layer's experts; a HealedMatrix that says why where there are some that cannot be refitted."""
        if EXPERTS not in self._heals or EXPERTS not in self._spec.branches:
            return
        weights: Float32 = np.load(self._spec.branches[EXPERTS]["weight"], mmap_mode="r+")
        found = recognised_experts(layer, weights, self._before.goal[: self._runner.n_ctx])
        if isinstance(found, ExpertBranch):
            self._experts = found
        else:
            yield HealedMatrix(self._spec.number, EXPERTS, "kept", 0.0, 0.0, 0.0, 0.0, {}, note=found)

    def _room(self) -> dict[str, Float32]:
        """Streams for what the feed-forward matrix that is refitted reads; none where none is."""
        if FEED_FORWARD in self._heals and FEED_FORWARD in self._branches:
            return {FEED_FORWARD: self._columns(FEED_FORWARD)}
        return self._experts.room(self._runner.store) if self._experts is not None else {}

    def _healed_stream(
        self, layer: Layer, middle: Float32, behind: Float32, inputs: dict[str, Float32], goal: Float32
    ) -> Generator[Message, None, Float32]:
        """The healed model's stream behind the layer. middle, behind: the unpruned model's, within it and behind it."""
        if self._before.same and not inputs:
            return behind
        if not self._heals & self._branches.keys() and self._experts is None:
            carried = self._stream()
            yield from self._runner.run(layer, self._before.healed, {OUTPUT: carried}, OUTPUT)
            return carried
        if not self._before.same:
            middle = yield from self._attention(layer, middle)
            inputs, behind = self._room(), self._stream()
            taken = {FEED_FORWARD: inputs[FEED_FORWARD]} if FEED_FORWARD in inputs else inputs | {OUTPUT: behind}
            last = FEED_FORWARD if FEED_FORWARD in inputs else OUTPUT
            yield from self._runner.run(layer, self._before.healed, taken, last, middle)
        if FEED_FORWARD in inputs:
            return (yield from self._healed(FEED_FORWARD, inputs[FEED_FORWARD], middle, goal))
        if self._experts is None:
            return behind
        return (yield from self._healed_experts(self._experts, inputs, middle, behind, goal))

    def _behind_gap(self, stream: Float32) -> Generator[Message, None, Float32]:
        """The unpruned model's stream behind the layers that are left out."""
        for spec in self._gap:
            layer, behind = self._runner.opened(spec), self._stream()
            try:
                yield from self._runner.run(layer, stream, {OUTPUT: behind}, OUTPUT)
            finally:
                layer.close()
            self._runner.check(spec.number, behind)
            stream = behind
        return stream

    def _attention(self, layer: Layer, goal: Float32) -> Generator[Message, None, Float32]:
        """The healed model's stream between attention and feed-forward."""
        stream = self._before.healed
        if ATTENTION not in self._branches or ATTENTION not in self._heals:
            middle = self._stream()
            yield from self._runner.run(layer, stream, {MIDDLE: middle}, MIDDLE)
            return middle
        inputs = self._columns(ATTENTION)
        yield from self._runner.run(layer, stream, {ATTENTION: inputs}, ATTENTION)
        return (yield from self._healed(ATTENTION, inputs, stream, goal))

    def _healed_experts(
        self, branch: ExpertBranch, inputs: dict[str, Float32], middle: Float32, behind: Float32, goal: Float32
    ) -> Generator[Message, None, Float32]:
        """Refit the experts, report it, and return the stream behind them. behind: that of the old experts."""
        store, missing = self._runner.store, self._stream()
        for start in range(0, len(goal), _BLOCK):
            rows = slice(start, start + _BLOCK)
            missing[rows] = goal[rows] - behind[rows]
        changes = store.array(*np.swapaxes(branch.weights, 1, 2).shape)
        samples = Samples(missing, middle, goal, token_weights(goal), self._runner.chunks)
        found = ExpertFit(branch.routing(inputs), samples, changes).heal()
        for expert in found.choices:
            branch.weights[expert] += changes[expert].T
        yield experts_message(self._spec, branch, found)
        for start in range(0, len(goal), _BLOCK):
            rows = slice(start, start + _BLOCK)
            missing[rows] = goal[rows] - missing[rows]
        return missing

    def _healed(self, kind: str, inputs: Float32, before: Float32, goal: Float32) -> Generator[Message, None, Float32]:
        """Refit one branch, report it, and add what it gives to the stream before it."""
        samples = Samples(inputs, before, goal, token_weights(goal), self._runner.chunks)
        found = heal(self._branches[kind], samples)
        yield message(self._spec.number, kind, self._branches[kind], found)
        behind = self._stream()
        for start in range(0, len(before), _BLOCK):
            rows = slice(start, start + _BLOCK)
            behind[rows] = before[rows] + found.branch(np.asarray(inputs[rows]))
        return behind


def message(number: int, kind: str, old: Branch, found: Healed) -> HealedMatrix:
    """The message about one matrix; it carries only what has changed."""
    arrays = {}
    if found.branch.weight is not old.weight:
        arrays["weight"] = found.branch.weight
    if found.branch.gain is not old.gain and found.branch.gain is not None:
        arrays["gain"] = found.branch.gain
    return HealedMatrix(
        number, kind, found.method, found.penalty, found.shrink, found.before, found.after, dict(arrays)
    )


def experts_message(spec: HealLayer, branch: ExpertBranch, found: HealedExperts) -> HealedMatrix:
    """The message about a layer's experts; their weights stay in the file that they came from."""
    note = f"{len(found.choices)} of {len(branch.weights)} experts"
    if found.few:
        note += (
            f", {found.few} got fewer than {FEWEST_TOKENS:.0f} tokens for each of {branch.weights.shape[2]:,} columns"
        )
    if not found.choices:
        return HealedMatrix(spec.number, EXPERTS, "kept", 0.0, 0.0, found.before, found.before, {}, note=note)
    penalty = float(np.median([choice.penalty for choice in found.choices.values()]))
    shrink = float(np.mean([choice.shrink for choice in found.choices.values()]))
    file = spec.branches[EXPERTS]["weight"]
    return HealedMatrix(spec.number, EXPERTS, "ridge", penalty, shrink, found.before, found.after, {}, file, note)


def recognised(layer: Layer, spec: HealLayer, stream: Float32) -> dict[str, Branch]:
    """The branches of a layer, each checked: computed from its weight it gives what the graph adds to the stream.

    stream: the layer's input for one chunk. Raises EngineError where neither form of a branch does.
    """
    parts = {name: loaded_branch(files, spec.epsilon) for name, files in spec.branches.items() if name != EXPERTS}
    shapes = {MIDDLE: stream.shape[1], OUTPUT: stream.shape[1]}
    shapes |= {name: branch.weight.shape[1] for name, branch in parts.items()}
    taken = {name: np.empty((len(stream), columns), np.float32) for name, columns in shapes.items()}
    for _ in layer.run(stream, taken, OUTPUT):
        pass
    added = {ATTENTION: taken[MIDDLE] - stream, FEED_FORWARD: taken[OUTPUT] - taken[MIDDLE]}
    return {name: branch_form(branch, taken[name], added[name], spec.number, name) for name, branch in parts.items()}


def branch_form(branch: Branch, inputs: Float32, added: Float32, number: int, name: str) -> Branch:
    """The branch with or without its norm, whichever gives what the graph adds; EngineError where neither does."""
    forms = [branch] if branch.gain is None else [branch, replace(branch, gain=None)]
    size = max(float(np.square(added, dtype=np.float64).sum()), 1e-30)
    for form in forms:
        off = float(np.square(form(inputs) - added, dtype=np.float64).sum())
        if off <= _TOLERANCE**2 * size:
            return form
    raise EngineError(
        f"layer {number}: what {name} gives is not simply added to the stream in this architecture; it cannot be healed"
    )


def loaded_branch(files: dict[str, str], epsilon: float) -> Branch:
    """A branch from its .npy files, as HealLayer names them."""
    found = {name: np.load(path) for name, path in files.items()}
    return Branch(found["weight"], found.get("bias"), found.get("gain"), epsilon)
