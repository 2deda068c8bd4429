"""KL divergence and its companions from what each scored token gave, as llama-perplexity --kl-divergence sums it up.

The child compares; the parent may put together what several children compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
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

    @property
    def columns(self) -> dict[str, NDArray[np.generic]]:
        """By name, as they cross a pipe."""
        return {"nll": self.nll, "nll_base": self.nll_base, "kld": self.kld, "same_top": self.same_top}

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def delta_p(self) -> Float64:
        """p(target) − p_base(target)."""
        return np.asarray(np.exp(-self.nll) - np.exp(-self.nll_base))


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
