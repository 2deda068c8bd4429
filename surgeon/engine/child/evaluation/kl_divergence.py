"""KL divergence of a model from saved log-probabilities, with the statistics of llama-perplexity --kl-divergence."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.evaluation.base_file import BaseFile, Decoded
from surgeon.engine.child.evaluation.log_probabilities import Float64, by_slabs, normaliser
from surgeon.engine.child.evaluation.windows import Rows, evaluate, read_tokens, window_size
from surgeon.engine.child.llama.model import Context, ContextSize, LlamaModel, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import DivergenceJob, Finished, Message, Started, Step

_DEPTH = np.float32(-16.0)  # base log-probabilities at or below it do not count
KLD_QUANTILES = (0.999, 0.99, 0.95, 0.90, 0.50, 0.10, 0.05, 0.01, 0.001)
DELTA_P_QUANTILES = (0.999, 0.99, 0.95, 0.90, 0.75, 0.50, 0.25, 0.10, 0.05, 0.01, 0.001)


@dataclass(frozen=True)
class Comparison:
    """Per scored token: −log p and the base's (float32 values), KL divergence, whether the likeliest token agrees."""

    nll: Float64
    nll_base: Float64
    kld: Float64
    same_top: NDArray[np.bool_]

    @staticmethod
    def joined(parts: list[Comparison]) -> Comparison:
        columns = zip(*((part.nll, part.nll_base, part.kld, part.same_top) for part in parts), strict=True)
        nll, nll_base, kld, same_top = (np.concatenate(column) for column in columns)
        return Comparison(nll, nll_base, kld, same_top.astype(np.bool_))

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def delta_p(self) -> Float64:
        """p(target) − p_base(target)."""
        return np.asarray(np.exp(-self.nll) - np.exp(-self.nll_base))


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
    figures = yield from divergence(model, base, n_chunks, size, threads)
    yield Finished(figures)


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


def compared_chunks(context: Context, base: BaseFile, n_chunks: int) -> Iterator[tuple[int, Comparison]]:
    """(chunk, its Comparison) one after the other."""
    pieces: list[Comparison] = []
    done = 0
    for rows in evaluate(context, base.tokens[:n_chunks], base.n_ctx // 2):
        pieces.append(compare(rows, base.rows(rows.chunk, done, len(rows.targets))))
        done += len(rows.targets)
        if rows.ends:
            yield rows.chunk, Comparison.joined(pieces)
            pieces, done = [], 0


def _mean_and_error(values: Float64) -> tuple[float, float]:
    """Mean and its standard error (0 for at most ten values)."""
    n = len(values)
    mean = float(values.mean())
    if n <= 10:
        return mean, 0.0
    variance = float((values * values).mean()) - mean * mean
    return mean, math.sqrt(max(0.0, variance) / (n - 1))


def statistics(tokens: Comparison, *, final: bool = True) -> dict[str, float]:
    """The figures of llama-perplexity's summary as fractions; final=False: only those of its running table."""
    figures = _perplexities(tokens)
    figures["mean_kld"], figures["mean_kld_error"] = _mean_and_error(tokens.kld)
    delta_p = tokens.delta_p
    mean_square, square_error = _mean_and_error(delta_p * delta_p)
    rms = math.sqrt(mean_square)
    figures["rms_delta_p"], figures["rms_delta_p_error"] = rms, 0.5 / rms * square_error if rms > 0 else 0.0
    same = float(tokens.same_top.mean())
    figures["same_top"] = same
    figures["same_top_error"] = math.sqrt(same * (1 - same) / max(1, len(tokens) - 1))
    figures["n_tokens"] = len(tokens)
    if final:
        figures["mean_delta_p"], figures["mean_delta_p_error"] = _mean_and_error(delta_p)
        figures |= _quantiles("kld", tokens.kld, KLD_QUANTILES)
        figures |= _quantiles("delta_p", delta_p, DELTA_P_QUANTILES)
        figures["median_kld"] = figures["kld_50"]
    return figures


def _perplexities(tokens: Comparison) -> dict[str, float]:
    mean, error = _mean_and_error(tokens.nll)
    base, base_error = _mean_and_error(tokens.nll_base)
    n = len(tokens)
    covariance = (float((tokens.nll * tokens.nll_base).mean()) - mean * base) / max(1, n - 1) if n > 10 else 0.0
    ppl, ppl_base = math.exp(mean), math.exp(base)
    log_ratio_error = math.sqrt(max(0.0, error**2 + base_error**2 - 2 * covariance))
    ppl_error, ppl_base_error = error * ppl, base_error * ppl_base
    difference_error = math.sqrt(max(0.0, ppl_error**2 + ppl_base_error**2 - 2 * ppl * ppl_base * covariance))
    return {
        "ppl": ppl,
        "ppl_error": ppl_error,
        "ppl_base": ppl_base,
        "ppl_base_error": ppl_base_error,
        "correlation": covariance / (error * base_error) if error > 0 and base_error > 0 else 0.0,
        "ln_ppl_ratio": mean - base,
        "ln_ppl_ratio_error": log_ratio_error,
        "ppl_ratio": math.exp(mean - base),
        "ppl_ratio_error": math.exp(mean - base) * log_ratio_error,
        "ppl_difference": ppl - ppl_base,
        "ppl_difference_error": difference_error,
    }


def _quantiles(name: str, values: Float64, fractions: tuple[float, ...]) -> dict[str, float]:
    """`name_99`, `name_99.9`, ... by linear interpolation between order statistics, `name_max`, `name_min`."""
    found = np.quantile(values.astype(np.float32), fractions)
    figures = {f"{name}_{100 * fraction:.4g}": float(value) for fraction, value in zip(fractions, found, strict=True)}
    return {**figures, f"{name}_max": float(values.max()), f"{name}_min": float(values.min())}
