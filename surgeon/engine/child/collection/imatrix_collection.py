"""Activation statistics of every matrix, as llama-imatrix collects them, and of every layer, in the same pass.

For each matrix multiplication with a weight `blk.*` (and `output.weight` on request), over all rows x of its input:
Σ x² and Σ x per channel, and the number of rows; per expert for mixture-of-experts matrices.
For each layer, with x and y the residual stream before and after it: Σ cos(x, y), Σ x·y, Σ |x|², Σ |y|², tokens.
For each expert: calls, Σ of the router's weights, Σ weight × |output|.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.collection.expert_sums import DOWN, WEIGHTED, ExpertAdder
from surgeon.engine.child.collection.moment_sums import HEADS, MomentSums
from surgeon.engine.child.evaluation.log_probabilities import Float64, negative_log_likelihood
from surgeon.engine.child.evaluation.perplexity import PerplexitySum
from surgeon.engine.child.evaluation.windows import Rows, chunk_count, evaluate, read_tokens, window_size
from surgeon.engine.child.llama.graph import GGML_TYPE_F32, Node, rows
from surgeon.engine.child.llama.model import LlamaModel, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Finished, ImatrixJob, Message, Snapshot, Started, Step, Within

_NO_STATE: Mapping[str, NDArray[np.generic]] = MappingProxyType({})
_FEWEST_ROWS = 16  # smaller batches are left out, as llama-imatrix does
LAYER_OUTPUT = re.compile(r"l_out-(\d+)")
Parts = list[tuple[int, NDArray[np.float32]]]  # (matrix, rows of its input)
_TELL_SECONDS = 0.25  # between two words on how far a decode is
_MOST_SAVING = 0.05  # share of the time that may go into keeping second moments on the way
FIRST_NORM = "norm-0"  # the first node of that name has the input of layer 0 as its operand


@dataclass
class ActivationSum:
    """squares, sums: float32[n_mat, cols] and float64[n_mat, cols]; counts: int64[1] or, per expert, int64[n_mat].

    Squares are added row after row in float32, which gives llama-imatrix's bits.
    """

    squares: NDArray[np.float32]
    sums: Float64
    counts: NDArray[np.int64]

    @staticmethod
    def zeros(n_mat: int, cols: int, n_counts: int) -> ActivationSum:
        squares = np.zeros((n_mat, cols), np.float32)
        return ActivationSum(squares, np.zeros((n_mat, cols)), np.zeros(n_counts, np.int64))

    def add(self, matrix: int, x: NDArray[np.float32]) -> None:
        """Add rows float32[n, cols] of one matrix (not the count)."""
        self.sums[matrix] += x.sum(axis=0)
        squares = x * x
        squares[0] += self.squares[matrix]
        self.squares[matrix] = np.add.reduce(squares, axis=0)


class Collector:
    """The eval callback: picks the nodes it wants and adds up what they hold.

    Matrices that multiply the same input (attn_q, attn_k, attn_v; ffn_gate, ffn_up) share one ActivationSum, and only
    the first of them stops the graph.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        process_output: bool,
        moments: MomentSums | None = None,
        state: Mapping[str, NDArray[np.generic]] = _NO_STATE,
        after_layer: Callable[[], None] = lambda: None,
    ) -> None:
        """state: the arrays of a snapshot to go on from, as if there had been no interruption; after_layer: called
        when a layer's output is there."""
        self._binding, self._process_output, self._moments = model.binding, process_output, moments
        self._after_layer = after_layer
        self.matrices: dict[str, ActivationSum] = {}
        self.layers = np.zeros((model.n_layer, 5))
        self.experts = ExpertAdder(model.n_layer)
        if "layers" in state:
            self.layers[...] = state["layers"]
        if "experts" in state:
            self.experts.sums = state["experts"].astype(np.float64).reshape(3, model.n_layer, -1)
        self._before = _restored(state)  # of matrices that this process has not met yet
        self._stream: NDArray[np.float32] | None = None  # residual stream after the last layer seen
        self._input: tuple[object, str] | None = None  # the input last added, and for which weight
        self._sharing: dict[str, str] = {}

    def __call__(self, address: int, ask: bool) -> bool:
        node = Node(self._binding, address)
        if node.op in (self._binding.mul_mat, self._binding.mul_mat_id):
            return self._wanted(node) if ask else self._add(node)
        name = node.name
        if name == FIRST_NORM and self._stream is None:
            self._input = None
            return True if ask else self._start_stream(node)
        if (match := LAYER_OUTPUT.fullmatch(name)) is not None:
            self._input = None
            return True if ask else self._add_layer(int(match[1]), node)
        if (match := WEIGHTED.fullmatch(name)) is not None:
            if not ask:
                self.experts.add_weighted(int(match[1]), node)
            return True
        return not ask

    def start_batch(self) -> None:
        """Forget what belongs to the batch before."""
        self._stream = self._input = None
        self.experts.start_batch()

    def _wanted(self, node: Node) -> bool:
        weight, data = node.source(0), node.source(1)
        if weight is None or data is None or data.type != GGML_TYPE_F32:
            return False
        name = weight.weight_name
        if not (self._in_matrix(name) or (self._moments is not None and name in HEADS and self._moments.wants(name))):
            return False
        if node.op == self._binding.mul_mat and data.ne[1] < _FEWEST_ROWS:
            return False
        return not self._shares(name, tuple(node.tensor.src[1:3]), weight.ne)

    def _in_matrix(self, name: str) -> bool:
        """Whether the importance matrix has an entry for this weight."""
        return name.startswith("blk.") or (self._process_output and name == "output.weight")

    def _shares(self, name: str, inputs: tuple[object, ...], ne: tuple[int, ...]) -> bool:
        """Whether the input was added for another weight of this graph; remembers that the two share it."""
        key = (inputs, ne[2:])
        if self._input is not None and self._input[0] == key and self._input[1] != name:
            first = self._input[1]
            if name not in self.matrices:
                self._sharing[name] = first
                self.matrices[name] = self.matrices[first]
                self._before.pop(name, None)  # it had the same input before: the sums are the same
            if self._sharing.get(name) == first:
                if self._moments is not None:
                    self._moments.share(name, first)
                return True
        if name in self._sharing:
            raise EngineError(
                f"{name}: shared its input with {self._sharing[name]} and now does not; nothing was saved"
            )
        self._input = (key, name)
        return False

    def _add(self, node: Node) -> bool:
        weight, data = node.source(0), node.source(1)
        assert weight is not None  # _wanted saw it
        assert data is not None
        experts = node.op == self._binding.mul_mat_id
        name, n_mat = weight.weight_name, weight.ne[2] * weight.ne[3]
        x = data.array().astype(np.float32, copy=False)
        if experts:
            chosen = node.source(2)
            assert chosen is not None
            ids = chosen.array()[0, 0]
            parts = _by_expert(x[0], ids)
            if (match := DOWN.fullmatch(name)) is not None:
                self.experts.add_down(int(match[1]), weight.ne[2], node, ids)
        else:
            parts = _by_matrix(x, weight.ne)
        if self._in_matrix(name):
            self._add_squares(name, n_mat, parts, experts=experts)
        if self._moments is not None and self._moments.wants(name):
            for matrix, part in parts:
                self._moments.add(name, n_mat, matrix, part)
        return True

    def _add_squares(self, name: str, n_mat: int, parts: Parts, *, experts: bool) -> None:
        columns = parts[0][1].shape[1]
        entry = self.matrices.get(name)
        if entry is None:
            entry = self._before.pop(name, None) or ActivationSum.zeros(n_mat, columns, n_mat if experts else 1)
            self.matrices[name] = entry
        if entry.squares.shape != (n_mat, columns):
            raise EngineError(f"{name}: its input had {entry.squares.shape[1]} channels and now has {columns}")
        for matrix, part in parts:
            entry.add(matrix, part)
            entry.counts[matrix if experts else 0] += len(part) if experts or matrix == 0 else 0
        if not np.isfinite(entry.squares).all():
            raise EngineError(f"{name}: its input holds NaN or infinity; `surgeon verify` names the tensor at fault")

    def _start_stream(self, node: Node) -> bool:
        data = node.source(0)
        if data is not None and data.type == GGML_TYPE_F32:
            self._stream = rows(data.array()).copy()
        return True

    def _add_layer(self, layer: int, node: Node) -> bool:
        self._after_layer()
        after = rows(node.array()).copy()
        before, self._stream = self._stream, after
        if before is None or before.shape != after.shape or layer >= len(self.layers):
            return True
        x, y = before.astype(np.float64), after.astype(np.float64)
        dot, xx, yy = (np.einsum("ij,ij->i", a, b) for a, b in ((x, y), (x, x), (y, y)))
        norms = np.sqrt(xx * yy)
        cosine = np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
        self.layers[layer] += cosine.sum(), dot.sum(), xx.sum(), yy.sum(), len(dot)
        if layer == len(self.layers) - 1:
            self._stream = None  # the next graph begins with layer 0 again
        return True

    def snapshot(self, chunks: int, n_ctx: int, sums: PerplexitySum) -> Snapshot:
        """Everything so far, not rounded."""
        arrays: dict[str, NDArray[np.generic]] = {
            "layers": self.layers.copy(),
            "ppl": np.array([sums.count, sums.total, sums.squares]),
        }
        for name, entry in (*self.matrices.items(), *self._before.items()):
            arrays[f"squares:{name}"] = entry.squares.copy()
            arrays[f"sum:{name}"] = entry.sums.copy()
            arrays[f"count:{name}"] = entry.counts.copy()
        if self.experts.sums is not None:
            arrays["experts"] = self.experts.sums.copy()
        return Snapshot(chunks, n_ctx, arrays)


def _restored(state: Mapping[str, NDArray[np.generic]]) -> dict[str, ActivationSum]:
    """The matrices of a snapshot. Raises EngineError where it lacks some of their arrays."""
    names = [key.removeprefix("squares:") for key in state if key.startswith("squares:")]
    try:
        return {
            name: ActivationSum(
                np.atleast_2d(state[f"squares:{name}"].astype(np.float32)),
                np.atleast_2d(state[f"sum:{name}"].astype(np.float64)),
                state[f"count:{name}"].astype(np.int64),
            )
            for name in names
        }
    except KeyError as error:
        raise EngineError(f"the interrupted collection lacks {error.args[0]}; start over without --resume") from None


def _by_matrix(x: NDArray[np.float32], ne: tuple[int, int, int, int]) -> Parts:
    """x: (ne3, ne2, rows, channels), spread over the weight's ne[2] × ne[3] matrices as ggml broadcasts them."""
    outer, inner = range(x.shape[0]), range(x.shape[1])
    return [((i % ne[3]) * ne[2] + j % ne[2], x[i, j]) for i in outer for j in inner]


def _by_expert(x: NDArray[np.float32], chosen: NDArray[np.generic]) -> Parts:
    """x: (tokens, slots or 1, channels); chosen: the expert of each (token, slot)."""
    parts = []
    for expert in np.unique(chosen):
        token, slot = np.nonzero(chosen == expert)
        parts.append((int(expert), x[token, slot % x.shape[1]]))
    return parts


class _Within:
    """Tells how far a decode is, of which the first may take minutes, layer by layer."""

    def __init__(self, tell: Callable[[Message], None], n_chunks: int, n_layer: int) -> None:
        self._tell, self._n_chunks, self._n_layer = tell, n_chunks, n_layer
        self._told = -math.inf  # the first layer is told: it moves

    def begin(self, start: int, chunks: int, graphs: int) -> None:
        """A decode of so many chunks, in as many graphs, each of all layers."""
        self._start, self._chunks, self._layers, self._seen = start, chunks, graphs * self._n_layer, 0

    def layer_done(self) -> None:
        self._seen += 1
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            part = min(1.0, self._seen / self._layers)
            self._tell(Within(self._start + part * self._chunks, self._n_chunks))


def collect(model: LlamaModel, job: ImatrixJob, threads: int, tell: Callable[[Message], None]) -> Iterator[Message]:
    """Started, a Step per chunk (`ppl` unless turned off), a Snapshot every `save_every` chunks and last, Finished.

    Within is told at once, now and then.

    Second moments are in their file (`raw_moments`) before the Snapshot of the same chunk is sent.
    """
    tokens = read_tokens(model, job.text, parse_special=job.parse_special)
    n_chunks = chunk_count(tokens, job.n_ctx, job.text, job.n_chunks, job.first_chunk)
    yield Started(len(tokens), n_chunks, job.n_ctx)
    if n_chunks == 0:
        yield Finished()
        return
    begin = job.first_chunk * job.n_ctx
    chunks = tokens[begin : begin + n_chunks * job.n_ctx].reshape(n_chunks, job.n_ctx)
    moments = MomentSums(job, threads) if job.moments else None
    within = _Within(tell, n_chunks, model.n_layer)
    collector = Collector(
        model, process_output=job.process_output, moments=moments, state=job.arrays, after_layer=within.layer_done
    )
    size = window_size(model, job.n_ctx, job.n_batch, job.n_ubatch, n_chunks)
    sums, saving = _scored_before(job), _Saving(job, moments)
    stop = n_chunks if job.until < 0 else min(job.until, n_chunks)
    with opened(model, size, threads, collector) as context:
        for start in range(job.done, stop, size.n_seq):
            collector.start_batch()
            if moments is not None:
                moments.start_at(job.first_chunk + start)
            done = min(start + size.n_seq, stop)
            within.begin(start, done - start, -(-(done - start) * job.n_ctx // size.n_ubatch))
            for rows_ in evaluate(context, chunks[start:done], 0):
                if job.perplexity:
                    _score(rows_, job.n_ctx // 2, sums)
            yield Step(done, n_chunks, sums.figures)
            if saving.is_due(done) and done < stop:
                saving.save(done)
                yield collector.snapshot(done, job.n_ctx, sums)
    if not (collector.matrices or job.done):
        raise EngineError(f"{model.path}: the graph of this model has no matrix named blk.*; nothing was collected")
    saving.save(max(stop, job.done))
    yield collector.snapshot(max(stop, job.done), job.n_ctx, sums)
    yield Finished(sums.figures)


class _Saving:
    """When to keep what there is: every `save_every` chunks; second moments less often where they are large."""

    def __init__(self, job: ImatrixJob, moments: MomentSums | None) -> None:
        self._job, self._moments = job, moments
        self._saved, self._ended, self._seconds = job.done, time.monotonic(), 0.0

    def is_due(self, done: int) -> bool:
        long_enough = time.monotonic() - self._ended >= self._seconds / _MOST_SAVING
        return done - self._saved >= self._job.save_every and long_enough

    def save(self, done: int) -> None:
        began = time.monotonic()
        if self._moments is not None:
            self._moments.save(self._job.first_chunk + done)
        self._saved, self._ended = done, time.monotonic()
        self._seconds = self._ended - began


def _scored_before(job: ImatrixJob) -> PerplexitySum:
    """What the chunks collected before add to the perplexity."""
    if "ppl" not in job.arrays:
        return PerplexitySum()
    count, total, squares = job.arrays["ppl"].tolist()
    return PerplexitySum(int(count), total, squares)


def _score(rows_: Rows, first: int, sums: PerplexitySum) -> None:
    """Add the rows from position `first` on; every position was asked for, so that the last layer sees them all."""
    skipped = max(0, first - rows_.position)
    if skipped < len(rows_.targets):
        sums.add(negative_log_likelihood(rows_.logits[skipped:], rows_.targets[skipped:]))
