"""Perplexity as llama-perplexity defines it: chunks of n_ctx tokens, the second half of each scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from surgeon.engine.child.evaluation.base_file import BaseWriter
from surgeon.engine.child.evaluation.log_probabilities import Float64, negative_log_likelihood
from surgeon.engine.child.evaluation.windows import chunk_count, evaluate, read_tokens, window_size
from surgeon.engine.child.llama.model import NOT_A_NUMBER, Context, ContextSize, LlamaModel, Tokens, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.perplexity_totals import PerplexityTotals
from surgeon.engine.protocol import ChunkSums, Finished, Message, PerplexityJob, Started, Step


@dataclass
class PerplexitySum(PerplexityTotals):
    """The sums, of tokens as they are scored."""

    def add(self, nll: Float64) -> None:
        """Raises EngineError at the first figure that is none: those after it would be none either."""
        if np.isnan(nll).any():
            raise EngineError(NOT_A_NUMBER)
        self.join(*sums_of(nll))


def sums_of(nll: Float64) -> tuple[int, float, float]:
    """Tokens, Σ −log p and Σ of its squares."""
    return len(nll), float(nll.sum()), float((nll * nll).sum())


def measure(model: LlamaModel, job: PerplexityJob, threads: int) -> Iterator[Message]:
    """Started, a Step with `ppl` after each chunk, Finished with ppl, ppl_error, n_tokens, n_chunks.

    Of a part of the chunks: a ChunkSums after each, with `sums` float64[runs of rows, 3] in order.
    """
    tokens = read_tokens(model, job.text)
    if job.stride > 0:
        yield from _strided(model, job, threads, tokens)
        return
    n_chunks = chunk_count(tokens, job.n_ctx, job.text, job.n_chunks)
    yield Started(len(tokens), n_chunks, job.n_ctx)
    chunks = tokens[: n_chunks * job.n_ctx].reshape(n_chunks, job.n_ctx)
    size = window_size(model, job.n_ctx, job.n_batch, job.n_ubatch, n_chunks)
    sums, parts = PerplexitySum(), []
    part = slice(job.first, None if job.until < 0 else job.until)
    with ExitStack() as stack:
        context = stack.enter_context(opened(model, size, threads))
        writer = None
        if job.save_base is not None:
            writer = stack.enter_context(BaseWriter(job.save_base, chunks, model.n_vocab, job.first))
        for rows in evaluate(context, chunks[part], job.n_ctx // 2):
            nll = writer.add(rows) if writer is not None else negative_log_likelihood(rows.logits, rows.targets)
            sums.add(nll)
            parts.append(sums_of(nll))
            if rows.ends:
                yield Step(job.first + rows.chunk + 1, n_chunks, _figures(sums))
                if job.until >= 0:
                    yield ChunkSums(job.first + rows.chunk, {"sums": np.array(parts, np.float64)})
                parts = []
        if writer is not None:
            writer.finish()
    yield Finished({**_figures(sums), "n_tokens": sums.count, "n_chunks": n_chunks, "n_ctx": job.n_ctx})


def _figures(sums: PerplexitySum) -> dict[str, float]:
    return {"ppl": sums.ppl, "ppl_error": sums.ppl_error}


def _strided(model: LlamaModel, job: PerplexityJob, threads: int, tokens: Tokens) -> Iterator[Message]:
    """Windows every `stride` tokens, only the last `stride` positions of each scored."""
    if job.save_base is not None:
        raise EngineError("log-probabilities cannot be saved with --ppl-stride: leave one of the two away")
    if not 0 < job.stride < job.n_ctx:
        raise EngineError(f"--ppl-stride {job.stride}: must be less than -c {job.n_ctx}")
    chunk_count(tokens, job.n_ctx, job.text)
    starts = range(0, len(tokens) - job.n_ctx + 1, job.stride)
    if job.n_chunks >= 0:
        starts = starts[: job.n_chunks]
    yield Started(len(tokens), len(starts), job.n_ctx)
    size = ContextSize(job.n_ctx, 1, min(job.n_batch, job.n_ctx), job.n_ubatch)
    sums = PerplexitySum()
    with opened(model, size, threads) as context:
        for number, start in enumerate(starts):
            _add_window(context, tokens[start : start + job.n_ctx], job.stride, sums)
            yield Step(number + 1, len(starts), _figures(sums))
    yield Finished({**_figures(sums), "n_tokens": sums.count, "n_chunks": len(starts), "n_ctx": job.n_ctx})


def _add_window(context: Context, window: Tokens, stride: int, sums: PerplexitySum) -> None:
    for rows in evaluate(context, window[None, :], len(window) - stride - 1):
        sums.add(negative_log_likelihood(rows.logits, rows.targets))
