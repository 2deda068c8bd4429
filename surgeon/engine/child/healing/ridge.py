"""Weighted least squares from sums: the matrix that carries a pruned model's branch nearest to what it shall add.

    min over D of  Σ_t w_t |E_t − D a_t|² + λ · tr(G)/f · |D|²        G = Σ w a aᵀ (f × f), C = Σ w a Eᵀ (f × d)

E is what the old matrix leaves undone, so D = 0 is the old matrix and λ draws towards it. Sums over the tokens of any
number of batches are all that is kept, so memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Sums = NDArray[np.floating]

LAMBDAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_EXACT_COLUMNS = 6144  # sums of wider matrices are kept in float32: half the memory, where it begins to matter


class Moments:
    """G, C, Σ w|E|² and Σ w|Y|² over the tokens added so far; Y: what the branch shall add (its scale)."""

    def __init__(self, columns: int, rows: int) -> None:
        kind = np.float64 if columns <= _EXACT_COLUMNS else np.float32
        self.gram: Sums = np.zeros((columns, columns), kind)
        self.cross: Sums = np.zeros((columns, rows), kind)
        self.left = self.whole = 0.0

    def add(self, inputs: Float32, missing: Float32, wanted: Float32, weights: Float32) -> None:
        """Add tokens: inputs float32[n, f], missing (E) and wanted (Y) float32[n, d], weights float32[n]."""
        root = np.sqrt(weights)[:, None]
        a, e = inputs * root, missing * root
        self.gram += a.T @ a
        self.cross += a.T @ e
        self.left += float(np.square(e, dtype=np.float64).sum())
        self.whole += float((np.square(wanted, dtype=np.float64).sum(axis=1) * weights).sum())

    def __add__(self, other: Moments) -> Moments:
        return self._combined(other, 1)

    def __sub__(self, other: Moments) -> Moments:
        return self._combined(other, -1)

    def _combined(self, other: Moments, sign: int) -> Moments:
        result = Moments.__new__(Moments)
        result.gram, result.cross = self.gram + sign * other.gram, self.cross + sign * other.cross
        result.left, result.whole = self.left + sign * other.left, self.whole + sign * other.whole
        return result

    def error(self, change: Sums) -> tuple[float, float]:
        """(b, q): with s·D in place of D the squared error is left − 2·s·b + s²·q."""
        return float((change * self.cross).sum()), float((change * (self.gram @ change)).sum())


def solved(moments: Moments, penalty: float) -> Sums:
    """D as [f, d] at λ = penalty."""
    gram = moments.gram.copy()
    gram[np.diag_indices_from(gram)] += penalty * max(float(np.trace(gram)) / len(gram), 1e-30)
    return np.asarray(np.linalg.solve(gram, moments.cross))


@dataclass(frozen=True)
class Fit:
    """change: D as [f, d], shrunk already, None where the old matrix is best; trial: D without the held-back tokens.

    penalty: λ; shrink: s; before, after: squared error on tokens that were not fitted, relative to Σ w|Y|², averaged
    over the kinds of text.
    """

    change: Sums | None
    trial: Sums | None
    penalty: float
    shrink: float
    before: float
    after: float


def fitted(fit: Sequence[Moments], held: Sequence[Moments], lambdas: Sequence[float] = LAMBDAS) -> Fit:
    """The ridge that does best on tokens it has not seen, then solved anew over all tokens.

    fit, held: sums over the fitted and the held-back chunks of each kind of text. With several kinds λ and s are those
    that serve a kind best when it is not fitted at all; a change that makes any kind worse is shrunk until it does not.
    """
    best = best_penalty(fit, held, lambdas)
    if best.shrink == 0:
        return best
    total = together(fit)
    trial = solved(total, best.penalty) * best.shrink
    change = solved(total + together(held), best.penalty) * best.shrink
    return replace(best, change=change, trial=trial)


def best_penalty(fit: Sequence[Moments], held: Sequence[Moments], lambdas: Sequence[float] = LAMBDAS) -> Fit:
    """λ and shrink of `fitted`, with what they come to, and no change yet."""
    before = [moments.left for moments in held]
    best = Fit(None, None, 0.0, 0.0, _mean(before, held), _mean(before, held))
    total = together(fit)
    for penalty in lambdas:
        parts = []
        for own, test in zip(fit, held, strict=True):
            seen = total - own if len(fit) > 1 else total
            parts.append(test.error(solved(seen, penalty)))
        shrink = _shrink(parts, before)
        after = _mean([e - 2 * shrink * b + shrink**2 * q for e, (b, q) in zip(before, parts, strict=True)], held)
        if shrink > 0 and after < best.after:
            best = Fit(None, None, penalty, shrink, best.before, after)
    return best


def together(parts: Sequence[Moments]) -> Moments:
    """The sums over all parts."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _mean(errors: Sequence[float], held: Sequence[Moments]) -> float:
    return float(np.mean([error / max(moments.whole, 1e-30) for error, moments in zip(errors, held, strict=True)]))


def _shrink(parts: Sequence[tuple[float, float]], before: Sequence[float]) -> float:
    """s in 0..1 with the least mean of error ratios over the kinds, none of which may grow."""
    up = sum(b / max(e, 1e-30) for (b, _), e in zip(parts, before, strict=True))
    down = sum(q / max(e, 1e-30) for (_, q), e in zip(parts, before, strict=True))
    allowed = min(2 * b / max(q, 1e-30) for b, q in parts)
    return float(max(0.0, min(1.0, up / max(down, 1e-30), allowed)))
