"""One layer that stays: its branches recognised, refitted, and the stream carried behind it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from surgeon.engine.child.healing.branches import Branch, Healed, heal
from surgeon.engine.child.healing.ridge import Float32
from surgeon.engine.child.healing.runner import Runner
from surgeon.engine.child.healing.samples import Samples, token_weights
from surgeon.engine.child.healing.streams import ATTENTION, FEED_FORWARD, MIDDLE, OUTPUT, Layer
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import HealedMatrix, HealLayer, Message

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
    """A kept layer and the pruned ones behind it. heals: which of `attn_output`, `ffn_down` are refitted.

    `result` holds the streams behind it when `messages` is through.
    """

    def __init__(self, runner: Runner, layer: HealLayer, gap: list[HealLayer], pair: Pair, heals: set[str]) -> None:
        self._runner, self._spec, self._gap, self._before, self._heals = runner, layer, gap, pair, heals
        self._branches: dict[str, Branch] = {}
        self.result = pair

    def messages(self) -> Iterator[Message]:
        """Runs of the layer, and a HealedMatrix per matrix refitted. Raises EngineError where it cannot be healed."""
        layer = self._runner.opened(self._spec)
        try:
            self._branches = recognised(layer, self._spec, self._before.goal[: self._runner.n_ctx])
            middle, behind = self._stream(), self._stream()
            inputs: Float32 | None = None
            taken = {MIDDLE: middle, OUTPUT: behind}
            shared = self._before.same and FEED_FORWARD in self._heals and FEED_FORWARD in self._branches
            if shared:  # the healed model has the same inputs here, so one run serves both
                inputs = taken[FEED_FORWARD] = self._columns(FEED_FORWARD)
            yield from self._runner.run(layer, self._before.goal, taken, OUTPUT)
            self._runner.check(self._spec.number, behind)
            goal = yield from self._behind_gap(behind)
            self.result = Pair(goal, (yield from self._healed_stream(layer, middle, behind, inputs, goal)))
        finally:
            layer.close()

    def _stream(self) -> Float32:
        return self._runner.store.new(self._before.goal.shape[1])

    def _columns(self, kind: str) -> Float32:
        return self._runner.store.new(self._branches[kind].weight.shape[1])

    def _healed_stream(
        self, layer: Layer, middle: Float32, behind: Float32, inputs: Float32 | None, goal: Float32
    ) -> Generator[Message, None, Float32]:
        """The healed model's stream behind the layer. middle, behind: the unpruned model's, within it and behind it."""
        healed = self._heals & self._branches.keys()
        if self._before.same and FEED_FORWARD not in healed:
            return behind
        if not healed:
            carried = self._stream()
            yield from self._runner.run(layer, self._before.healed, {OUTPUT: carried}, OUTPUT)
            return carried
        if not self._before.same:
            middle = yield from self._attention(layer, middle)
        return (yield from self._feed_forward(layer, middle, inputs, goal))

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

    def _feed_forward(
        self, layer: Layer, middle: Float32, inputs: Float32 | None, goal: Float32
    ) -> Generator[Message, None, Float32]:
        """The healed model's stream behind the layer."""
        if FEED_FORWARD not in self._branches or FEED_FORWARD not in self._heals:
            behind = self._stream()
            yield from self._runner.run(layer, self._before.healed, {OUTPUT: behind}, OUTPUT, middle)
            return behind
        if inputs is None:
            inputs = self._columns(FEED_FORWARD)
            taken = {FEED_FORWARD: inputs}
            yield from self._runner.run(layer, self._before.healed, taken, FEED_FORWARD, middle)
        return (yield from self._healed(FEED_FORWARD, inputs, middle, goal))

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


def recognised(layer: Layer, spec: HealLayer, stream: Float32) -> dict[str, Branch]:
    """The branches of a layer, each checked: computed from its weight it gives what the graph adds to the stream.

    stream: the layer's input for one chunk. Raises EngineError where neither form of a branch does.
    """
    parts = {name: loaded_branch(files, spec.epsilon) for name, files in spec.branches.items()}
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
