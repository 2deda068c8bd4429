"""One layer of a model, in a file of its own, run over residual streams instead of tokens.

A stream is float32[tokens, d_model], the input of the layer for every token of the text, chunk after chunk; it lies in
a file that is mapped, so that the system keeps in memory what fits. Because a layer needs nothing of the others but
its input, a model can be walked through layer by layer over any amount of text, each layer's matrices healed before
the next one is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.collection.imatrix_collection import FIRST_NORM
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import Context, ContextSize, EvalCallback, LlamaModel, opened
from surgeon.engine.errors import EngineError

Float32 = NDArray[np.float32]
# What can be taken from the graph of a layer: inputs of its two output matrices, the stream between, the stream after;
ATTENTION, MIDDLE, FEED_FORWARD, OUTPUT = "attn_output", "middle", "ffn_down", "output"
# of experts the inputs of all that a token is sent to, their numbers, and what their outputs are multiplied by.
EXPERTS, CHOSEN, FACTORS = "ffn_down_exps", "chosen", "factors"
_INPUT = "input"  # what the layer before it gives, where there is one


class Tap:
    """The eval callback: copies what is wanted into `taken`, stops after `last`.

    put: place -> rows that replace the stream, or the product, there; index: the layer's number in its file; look:
    further places, of which `taken` gets the rows of one chunk.
    """

    def __init__(
        self, binding: Binding, index: int, taken: dict[str, Float32], put: dict[str, Float32], last: str,
        look: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self._binding, self.taken, self._put, self._last, self._look = binding, taken, put, last, look
        self._wanted = taken.keys() | put.keys() | look | {last}
        self._weights = {f"blk.{index}.{name}.weight": name for name in (ATTENTION, FEED_FORWARD, EXPERTS)}
        self._streams = {f"ffn_inp-{index}": MIDDLE, f"sa_out-{index}": MIDDLE, f"l_out-{index}": OUTPUT}
        self._streams |= {f"l_out-{index - 1}": _INPUT} if index else {}
        self._streams[f"ffn_moe_weighted-{index}"] = FACTORS
        self.rows = slice(0)
        self.seen: set[str] = set()

    def __call__(self, address: int, ask: bool) -> bool:
        node = Node(self._binding, address)
        place = self._place(node)
        wanted = place in self._wanted
        if place is None or ask or not wanted:
            return wanted or not ask
        self.seen.add(place)
        if place in self._put:
            node.overwrite(self._put[place][self.rows])
        self._take(place, node if place in (_INPUT, MIDDLE, OUTPUT) else node.source(1))
        if place == EXPERTS:
            self._take(CHOSEN, node.source(2))
        return place != self._last

    def _place(self, node: Node) -> str | None:
        if node.op in (self._binding.mul_mat, self._binding.mul_mat_id) and (weight := node.source(0)) is not None:
            return self._weights.get(weight.weight_name)
        return self._streams.get(node.name)

    def _take(self, place: str, shown: Node | None) -> None:
        if place not in self.taken and place not in self._look:
            return
        assert shown is not None  # products have two operands, those with experts three
        self.seen.add(place)
        values = shown.array().astype(np.float32, copy=False).reshape(self.rows.stop - self.rows.start, -1)
        if place in self._look:
            self.taken[place] = values.copy()
        else:
            self.taken[place][self.rows] = values


class Layer:
    """The layer of number `index` in the file `path`. n_ctx: tokens of a chunk; label: how messages call it."""

    def __init__(self, binding: Binding, path: str, index: int, label: str, n_ctx: int, threads: int) -> None:
        self._binding, self._index, self._label = binding, index, label
        self._n_ctx, self._threads = n_ctx, threads
        self._model = LlamaModel(binding, path)
        self._scale: float | None = None

    def close(self) -> None:
        self._model.close()

    def run(
        self, stream: Float32, taken: dict[str, Float32], last: str, middle: Float32 | None = None
    ) -> Iterator[int]:
        """Run the layer over `stream`; yields after every chunk the number of chunks done.

        taken: place -> where its rows go, float32[tokens, columns]; middle: put in the place of the stream between
        attention and feed-forward. Raises EngineError where the graph does not show what is wanted.
        """
        put = self._put(stream) | ({} if middle is None else {MIDDLE: middle})
        scale = self._input_scale(stream[: self._n_ctx])
        tap = Tap(self._binding, self._index, taken, put, last)
        needed = taken.keys() | put.keys() | {last}
        with self._context(tap) as context:
            for start in range(0, len(stream), self._n_ctx):
                tap.rows, tap.seen = slice(start, start + self._n_ctx), set()
                context.clear()
                context.decode_rows(stream[tap.rows] / scale)
                missing = needed - tap.seen
                if missing:
                    raise EngineError(
                        f"{self._label}: the graph of this architecture does not show its {_WORDS[min(missing)]}; "
                        "it cannot be healed"
                    )
                yield start // self._n_ctx + 1

    def look(self, stream: Float32, places: set[str], put: dict[str, Float32] | None = None) -> dict[str, Float32]:
        """Run the layer over one chunk; what its graph shows of `places`, none of those that are not there.

        put: place -> what replaces the stream, or the product, there.
        """
        tap = Tap(self._binding, self._index, {}, self._put(stream) | (put or {}), OUTPUT, frozenset(places))
        tap.rows = slice(0, len(stream))
        with self._context(tap) as context:
            context.decode_rows(stream / self._input_scale(stream))
        return tap.taken

    def _put(self, stream: Float32) -> dict[str, Float32]:
        """A layer that is not its file's first gets its input behind the one before."""
        return {_INPUT: stream} if self._index else {}

    def _context(self, callback: EvalCallback) -> AbstractContextManager[Context]:
        size = ContextSize(self._n_ctx, 1, self._n_ctx, self._n_ctx)
        return opened(self._model, size, self._threads, callback)

    def _input_scale(self, stream: Float32) -> np.float32:
        """What the graph multiplies its input by before the first layer: some architectures scale embeddings."""
        if self._index:
            return np.float32(1)  # the stream is put behind the layer before
        if self._scale is None:
            seen: list[Float32] = []

            def see(address: int, ask: bool) -> bool:
                node = Node(self._binding, address)
                if seen or node.name != FIRST_NORM:
                    return not ask
                shown = node.source(0)
                if not ask and shown is not None:
                    seen.append(rows(shown.array()).copy())
                return ask

            with self._context(see) as context:
                context.decode_rows(stream)
            scale = float((seen[0] * stream).sum() / np.square(stream).sum()) if seen else 1.0
            self._scale = scale
        return np.float32(self._scale)


_WORDS = {
    _INPUT: "stream before the layer (l_out)",
    ATTENTION: "attn_output matrix",
    MIDDLE: "stream between attention and feed-forward (ffn_inp or sa_out)",
    FEED_FORWARD: "ffn_down matrix",
    EXPERTS: "ffn_down_exps matrix",
    CHOSEN: "choice of experts",
    FACTORS: "experts' weights (ffn_moe_weighted)",
    OUTPUT: "stream behind the layer (l_out)",
}
