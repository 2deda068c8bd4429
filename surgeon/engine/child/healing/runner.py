"""Runs of single layers over streams, counted for the progress line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from surgeon.engine.child.collection.imatrix_collection import FIRST_NORM, LAYER_OUTPUT
from surgeon.engine.child.healing.ridge import Float32
from surgeon.engine.child.healing.samples import Chunks
from surgeon.engine.child.healing.selection import Selection
from surgeon.engine.child.healing.store import Store
from surgeon.engine.child.healing.streams import Layer
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import HealLayer, Message, Step

_TOLERANCE = 0.01  # of a layer run alone against the layer within the model


@dataclass
class Runner:
    """What every step of the healing needs. total: runs of a chunk through a layer, at most; done: of them so far."""

    model: LlamaModel
    selection: Selection
    store: Store
    n_ctx: int
    threads: int
    total: int
    done: int = field(default=0)
    shown: dict[int, Float32] = field(default_factory=dict)  # layer -> what the whole model has behind it, first chunk

    @property
    def chunks(self) -> Chunks:
        return self.selection.chunks

    def opened(self, layer: HealLayer) -> Layer:
        return Layer(self.model.binding, layer.file, layer.index, f"layer {layer.number}", self.n_ctx, self.threads)

    def run(
        self, layer: Layer, stream: Float32, taken: dict[str, Float32], last: str, middle: Float32 | None = None
    ) -> Iterator[Message]:
        """Layer.run with a Step after every chunk."""
        yield from self._counted(layer.run(stream, taken, last, middle))

    def enter(self, first: int, stream: Float32) -> Iterator[Message]:
        """The whole model's stream before its layer `first`, into `stream`."""
        yield from self._counted(self._entry(first, stream), max(1, first))

    def _counted(self, chunks: Iterator[int], layers: int = 1) -> Iterator[Message]:
        for _ in chunks:
            self.done += layers
            yield Step(self.done, self.total)

    def check(self, number: int, behind: Float32) -> None:
        """Raises EngineError where layer `number`, run alone, gave another stream than within the model."""
        whole = self.shown.get(number)
        if whole is None:
            raise EngineError(
                f"{self.model.path}: the graph of this architecture does not show the stream behind layer {number} "
                f"(l_out-{number}); it cannot be healed"
            )
        alone = behind[: self.n_ctx][-len(whole) :]  # the last layer shows only the rows that were asked for
        off, size = float(np.square(alone - whole).sum()), float(np.square(whole).sum())
        if not off <= _TOLERANCE**2 * size:
            raise EngineError(
                f"{self.model.path}: layer {number} run alone gives another stream than within the model; this "
                f"architecture ({self.model.description}) cannot be healed"
            )

    def _entry(self, first: int, stream: Float32) -> Iterator[int]:
        binding, n_ctx = self.model.binding, self.n_ctx
        tap = _EntryTap(binding, first, stream, self.shown)
        with opened(self.model, ContextSize(n_ctx, 1, n_ctx, n_ctx), self.threads, tap) as context:
            positions = np.arange(n_ctx, dtype=np.int32)
            for number, chunk in enumerate(self.selection.fed):
                tap.start(slice(number * n_ctx, (number + 1) * n_ctx))
                context.clear()
                context.decode(chunk, positions, np.zeros(n_ctx, np.int32), positions == n_ctx - 1)
                if not tap.seen:
                    raise EngineError(
                        f"{self.model.path}: the graph of this architecture does not show the stream before layer "
                        f"{first} ({tap.wanted}); it cannot be healed"
                    )
                yield number + 1


class _EntryTap:
    """The eval callback that takes the stream before layer `first`, and in the first chunk those behind all others."""

    def __init__(self, binding: Binding, first: int, stream: Float32, shown: dict[int, Float32]) -> None:
        self._binding, self._first, self._stream, self._shown = binding, first, stream, shown
        self.wanted = FIRST_NORM if first == 0 else f"l_out-{first - 1}"
        self._rows, self.seen = slice(0), False

    def start(self, rows_: slice) -> None:
        self._rows, self.seen = rows_, False

    def __call__(self, address: int, ask: bool) -> bool:
        node = Node(self._binding, address)
        name = node.name
        if not self.seen and name == self.wanted:
            shown = node.source(0) if self._first == 0 else node
            if not ask and shown is not None:
                self._stream[self._rows] = rows(shown.array())
                self.seen = True
            return ask or self._rows.start == 0
        match = LAYER_OUTPUT.fullmatch(name) if self._rows.start == 0 else None
        if match is not None and not ask:
            self._shown[int(match[1])] = rows(node.array()).copy()
        return match is not None or not ask
