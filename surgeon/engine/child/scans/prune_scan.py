"""What leaving a layer out costs, measured: KL divergence from the whole model with each set of layers passed over.

The model is loaded once. A layer is left out by overwriting its output, in the running graph, with its input, which is
what the pruned model computes as long as no role of another layer changes with its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.collection.imatrix_collection import FIRST_NORM, LAYER_OUTPUT
from surgeon.engine.child.evaluation.base_file import BaseFile, BaseWriter
from surgeon.engine.child.evaluation.kl_divergence import compare
from surgeon.engine.child.evaluation.windows import Rows, chunk_count, evaluate, read_tokens
from surgeon.engine.child.healing.branches import Branch
from surgeon.engine.child.healing.scan_repairs import INPUT, MIDDLE, OUTPUT, Repairs, gaps, place_of, wanted_gaps
from surgeon.engine.child.llama.graph import Node, rows
from surgeon.engine.child.llama.model import Context, ContextSize, LlamaModel, Tokens, opened
from surgeon.engine.comparison import Comparison, statistics
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Finished, HealLayer, LayerDamage, LeaveOut, Message, PruneScanJob, Started, Step


class Bypass:
    """The eval callback that passes over the layers in `skipped` (numbers of this model).

    repaired: layers before gaps -> the feed-forward branch that takes the place of their own.
    """

    def __init__(self, model: LlamaModel) -> None:
        self._binding = model.binding
        self.skipped: frozenset[int] = frozenset()
        self._kept: NDArray[np.float32] | None = None
        self.passed: set[int] = set()
        self.repaired: dict[int, Branch] = {}
        self._seen: dict[str, NDArray[np.float32]] = {}

    def __call__(self, address: int, ask: bool) -> bool:
        if not self.skipped:
            return not ask
        node = Node(self._binding, address)
        if self.repaired and (place := place_of(self._binding, node)) is not None and place[1] in self.repaired:
            if ask:
                return True
            self._repair(*place, node)
        name = node.name
        if name == FIRST_NORM and 0 in self.skipped and self._kept is None:
            data = node.source(0)
            if not ask and data is not None:
                self._kept = rows(data.array()).copy()
            return True
        match = LAYER_OUTPUT.fullmatch(name)
        if match is None:
            return not ask
        layer = int(match[1])
        needed = layer in self.skipped or layer + 1 in self.skipped
        if ask or not needed:
            return needed or not ask
        self._pass_over(layer, node)
        return True

    def _repair(self, place: str, layer: int, node: Node) -> None:
        if place == OUTPUT:
            node.overwrite(self._seen[MIDDLE] + self.repaired[layer](self._seen[INPUT]))
            return
        shown = node.source(1) if place == INPUT else node
        assert shown is not None  # a product has two operands
        self._seen[place] = rows(shown.array()).copy()

    def _pass_over(self, layer: int, node: Node) -> None:
        if layer in self.skipped:
            if self._kept is None:
                raise EngineError(f"layer {layer} cannot be left out: the graph does not show its input")
            node.overwrite(self._kept)
            self.passed.add(layer)
        else:
            self._kept = rows(node.array()).copy()
        if layer + 1 not in self.skipped:
            self._kept = None


def measure(model: LlamaModel, job: PruneScanJob, threads: int, requests: Iterator[Message]) -> Iterator[Message]:
    """Started, a Step per chunk of each run, a LayerDamage per set of layers, Finished."""
    _require_layers(model, job.layer_sets)
    tokens = read_tokens(model, job.text)
    n_chunks = chunk_count(tokens, job.n_ctx, job.text, job.n_chunks)
    before = 0 if job.base_is_made else 1
    runs = before + len(job.layer_sets)
    yield Started(len(tokens), runs * n_chunks, job.n_ctx)
    repairs = _repairs(model, job, tokens, n_chunks, threads) if job.repairs else None
    if repairs is not None:
        for _ in repairs.collect(wanted_gaps(job.layer_sets)):
            yield Step(0, runs * n_chunks)
    chunks = tokens[: n_chunks * job.n_ctx].reshape(n_chunks, job.n_ctx)
    # One sequence at a time, every row an output: rows then keep their order through the last layer.
    size = ContextSize(job.n_ctx, 1, job.n_ctx, job.n_ubatch)
    bypass = Bypass(model)
    with opened(model, size, threads, bypass) as context:
        for chunk in () if job.base_is_made else save_base(context, job.base, chunks):
            yield Step(chunk + 1, runs * n_chunks)
        base = BaseFile(job.base)
        if not np.array_equal(base.tokens, chunks):
            raise EngineError(f"{job.base}: was saved from another text or with another -c; remove it")
        for number, layers in enumerate(chain(job.layer_sets, _asked(model, requests) if job.more else ())):
            bypass.skipped, bypass.passed = frozenset(layers), set()
            if repairs is not None:
                bypass.repaired = {gap[0]: repairs.branch(gap) for gap in gaps(layers)}
            parts: list[Comparison] = []
            for chunk, part in compared(context, base):
                parts.append(part)
                yield Step((before + number) * n_chunks + chunk + 1, runs * n_chunks)
            if bypass.passed != bypass.skipped:
                raise EngineError(f"{model.path}: this model's graph does not show where its layers end")
            figures = statistics(Comparison.joined(parts), final=False)
            yield LayerDamage(layers, figures["mean_kld"], figures["ppl"], figures["same_top"])
    yield Finished({"n_chunks": n_chunks, "n_ctx": job.n_ctx})


def _repairs(model: LlamaModel, job: PruneScanJob, tokens: Tokens, measured: int, threads: int) -> Repairs:
    """Fits on the chunks behind the measured ones, spread over the text. Raises EngineError where there are few."""
    there = len(tokens) // job.n_ctx - measured
    if there < 5:
        raise EngineError(f"{job.text}: {there} chunks behind the {measured} measured are too few to heal on")
    chosen = measured + np.linspace(0, there - 1, min(there, job.n_fit)).astype(int)
    chunks = tokens[: (measured + there) * job.n_ctx].reshape(-1, job.n_ctx)[chosen].copy()
    if model.bos is not None:
        chunks[:, 0] = model.bos
    return Repairs(model, [HealLayer(**layer) for layer in job.repairs], job.folder, chunks, threads)


def _asked(model: LlamaModel, requests: Iterator[Message]) -> Iterator[list[int]]:
    """The sets of layers among the requests."""
    for request in requests:
        if not isinstance(request, LeaveOut):
            raise EngineError(f"a scan of layers cannot answer {type(request).__name__}")
        _require_layers(model, [request.layers])
        yield request.layers


def _require_layers(model: LlamaModel, layer_sets: list[list[int]]) -> None:
    for layers in layer_sets:
        wrong = [layer for layer in layers if not 0 <= layer < model.n_layer]
        if wrong:
            raise EngineError(f"{model.path}: has no layer {wrong[0]}; its layers are 0 to {model.n_layer - 1}")


def _scored(context: Context, chunks: Tokens) -> Iterator[Rows]:
    """The rows that llama-perplexity scores, out of all rows."""
    first = chunks.shape[1] // 2
    for window in evaluate(context, chunks, 0):
        skipped = max(0, first - window.position)
        if skipped < len(window.targets):
            position = window.position + skipped
            yield Rows(window.chunk, position, window.logits[skipped:], window.targets[skipped:], window.ends)


def save_base(context: Context, path: str, chunks: Tokens) -> Iterator[int]:
    with BaseWriter(path, chunks, context.model.n_vocab) as writer:
        for window in _scored(context, chunks):
            writer.add(window)
            if window.ends:
                yield window.chunk
        writer.finish()


def compared(context: Context, base: BaseFile) -> Iterator[tuple[int, Comparison]]:
    for window in _scored(context, base.tokens):
        start = window.position - base.n_ctx // 2
        part = compare(window, base.rows(window.chunk, start, len(window.targets)))
        yield window.chunk, part
