"""KL divergence of a model from saved log-probabilities, with the statistics of llama-perplexity --kl-divergence."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from surgeon.engine.child.evaluation.base_file import BaseFile, Decoded
from surgeon.engine.child.evaluation.log_probabilities import by_slabs, normaliser
from surgeon.engine.child.evaluation.windows import Rows, evaluate, read_tokens, window_size
from surgeon.engine.child.llama.model import Context, ContextSize, LlamaModel, opened
from surgeon.engine.comparison import Comparison, statistics
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import ChunkSums, DivergenceJob, Finished, Message, Started, Step

_DEPTH = np.float32(-16.0)  # base log-probabilities at or below it do not count


def compare(rows: Rows, base: Decoded) -> Comparison:
    """The model's logits against the base's records of the same positions.

    KLD = Σ p_base · (log p_base − l + max + log Σ exp(l − max)) over log p_base > −16;
    products in float32, sum in float64.
    """

    def part(slab: slice) -> Comparison:
        logits, targets = rows.logits[slab], rows.targets[slab]
        index = np.arange(len(logits))
        norm = normaliser(logits)
        log_sum = norm.log_sum.astype(np.float32)
        log_base = base.log_probabilities(slab)
        difference = log_base - logits
        difference += norm.maximum[:, None]
        difference += log_sum[:, None]
        difference *= np.exp(log_base)
        kld = np.where(log_base > _DEPTH, difference, np.float32(0)).sum(axis=1, dtype=np.float64)
        nll = norm.maximum + log_sum - logits[index, targets]
        same = logits.argmax(axis=1) == base.codes[slab].argmax(axis=1)
        return Comparison(nll.astype(np.float64), -log_base[index, targets].astype(np.float64), kld, same)

    return Comparison.joined(list(by_slabs(rows.logits.shape, part)))


def measure(model: LlamaModel, job: DivergenceJob, threads: int) -> Iterator[Message]:
    """Started, a Step with the running figures after each chunk, Finished with `statistics()`."""
    base = BaseFile(job.base)
    require_same_tokens(model, base, job.text)
    n_chunks = base.n_chunks if job.n_chunks < 0 else min(base.n_chunks, job.n_chunks)
    yield Started(base.tokens.size, n_chunks, base.n_ctx)
    size = window_size(model, base.n_ctx, job.n_batch, job.n_ubatch, n_chunks)
    if job.until >= 0:
        yield from _part(model, base, range(job.first, min(job.until, n_chunks)), size, threads)
        return
    figures = yield from divergence(model, base, n_chunks, size, threads)
    yield Finished(figures)


def _part(model: LlamaModel, base: BaseFile, chunks: range, size: ContextSize, threads: int) -> Iterator[Message]:
    """A ChunkSums after each of these chunks, Finished."""
    with opened(model, size, threads) as context:
        for chunk, part in compared_chunks(context, base, chunks.stop, chunks.start):
            yield ChunkSums(chunk, part.columns)
    yield Finished()


def divergence(
    model: LlamaModel, base: BaseFile, n_chunks: int, size: ContextSize, threads: int
) -> Generator[Message, None, dict[str, float]]:
    """A Step with the running figures after each chunk; returns the `statistics()` of all."""
    parts: list[Comparison] = []
    with opened(model, size, threads) as context:
        for chunk, part in compared_chunks(context, base, n_chunks):
            parts.append(part)
            yield Step(chunk + 1, n_chunks, statistics(Comparison.joined(parts), final=False))
    return {**statistics(Comparison.joined(parts)), "n_chunks": n_chunks, "n_ctx": base.n_ctx}


def require_same_tokens(model: LlamaModel, base: BaseFile, text: str | None) -> None:
    """Raise EngineError where model and base cannot have the same tokenizer, or the text is not the base's."""
    if base.n_vocab != model.n_vocab:
        raise EngineError(
            f"{base.path}: saved from a model with a vocabulary of {base.n_vocab} tokens, but {model.path} has "
            f"{model.n_vocab}: models with different tokenizers cannot be compared"
        )
    if text is None:
        return
    tokens = read_tokens(model, text)[: base.tokens.size]
    if len(tokens) < base.tokens.size or not np.array_equal(tokens, base.tokens.reshape(-1)):
        raise EngineError(
            f"{base.path}: {text} gives other tokens than those saved there: another text, or another tokenizer"
        )


def compared_chunks(
    context: Context, base: BaseFile, n_chunks: int, first: int = 0
) -> Iterator[tuple[int, Comparison]]:
    """(chunk, its Comparison) one after the other, from `first` to before `n_chunks`."""
    pieces: list[Comparison] = []
    done = 0
    for rows in evaluate(context, base.tokens[first:n_chunks], base.n_ctx // 2):
        pieces.append(compare(rows, base.rows(first + rows.chunk, done, len(rows.targets))))
        done += len(rows.targets)
        if rows.ends:
            yield first + rows.chunk, Comparison.joined(pieces)
            pieces, done = [], 0
