"""The two branches of a layer, attention and feed-forward: what each adds to the stream, and how each is refitted.

Without a norm behind it a branch adds W·a + b. With one (gemma2, gemma3) it adds g ⊙ (W·a) / rms(W·a): only the
direction of W·a counts, so W is fitted to the direction wanted, U = (Y/g) / rms(Y/g), with tokens weighted by
rms(Y/g)², and then g, channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from surgeon.engine.child.healing.ridge import Fit, Float32, Moments, Sums, fitted
from surgeon.engine.child.healing.samples import Samples

_FEW = 16384  # tokens that are enough for one number, or one a channel
_WEIGHT_LIMIT = 20.0  # of a token against the mean, so that no few tokens rule the fit
_SHRINKS = (1.0, 0.5)
_GAIN_RIDGE = 1e-3


@dataclass(frozen=True)
class Branch:
    """weight: float32[d, f]; bias: float32[d] or None; gain: float32[d] of the norm behind it, None without one."""

    weight: Float32
    bias: Float32 | None = None
    gain: Float32 | None = None
    epsilon: float = 1e-6

    def __call__(self, inputs: Float32) -> Float32:
        """What the branch adds for float32[n, f]: float32[n, d]."""
        values = inputs @ self.weight.T
        if self.bias is not None:
            values += self.bias
        if self.gain is not None:
            values /= rms(values, self.epsilon)
            values *= self.gain
        return values


@dataclass(frozen=True)
class Healed:
    """A branch refitted. method: `kept` (nothing did better), `ridge`, `gain` or `refit`; errors as in Fit."""

    branch: Branch
    method: str
    penalty: float
    shrink: float
    before: float
    after: float


def rms(values: Float32, epsilon: float) -> Float32:
    return np.asarray(np.sqrt(np.square(values).mean(axis=1, keepdims=True) + np.float32(epsilon)), np.float32)


def heal(branch: Branch, samples: Samples) -> Healed:
    """The branch that adds what the stream lacks, as far as held-back tokens confirm it."""
    return _heal_plain(branch, samples) if branch.gain is None else _heal_normed(branch, samples)


def _heal_plain(branch: Branch, samples: Samples) -> Healed:
    fit = _ridge(branch.weight, samples, lambda a, y, w: (y - branch(a), y, w))
    if fit.change is None:
        return Healed(branch, "kept", 0.0, 0.0, fit.before, fit.before)
    weight = np.asarray(branch.weight + fit.change.T, np.float32)
    return Healed(replace(branch, weight=weight), "ridge", fit.penalty, fit.shrink, fit.before, fit.after)


# (inputs, wanted, weights) of a block -> (what the old matrix leaves undone, the wanted in the same scale, weights)
Residual = Callable[[Float32, Float32, Float32], tuple[Float32, Float32, Float32]]


def _ridge(weight: Float32, samples: Samples, residual: Residual) -> Fit:
    rows, columns = weight.shape
    sums: dict[bool, list[Moments]] = {False: [], True: []}
    for held in (False, True):
        for kind in range(samples.chunks.n_kinds):
            moments = Moments(columns, rows)
            for inputs, wanted, weights in samples.blocks(kind, held):
                moments.add(inputs, *residual(inputs, wanted, weights))
            sums[held].append(moments)
    return fitted(sums[False], sums[True])


def _heal_normed(branch: Branch, samples: Samples) -> Healed:
    """The best of: as it is, other gains, another direction and gains; judged by what is really added."""
    before = _errors(branch, samples)
    kept = Healed(branch, "kept", 0.0, 0.0, float(np.mean(before)), float(np.mean(before)))
    best, least = kept, kept.after
    trial = replace(branch, gain=_gains(branch, samples, held=False))
    if (error := _judged(trial, samples, before)) < least:
        final = replace(branch, gain=_gains(branch, samples, held=None))
        best, least = Healed(final, "gain", 0.0, 1.0, kept.before, error), error
    scale, fit = _turned(branch.weight, trial, samples)
    if fit.change is None or fit.trial is None:
        return best
    for shrink in _SHRINKS:
        candidate = _regained(branch, samples, scale, fit.trial * shrink, held=False)
        if (error := _judged(candidate, samples, before)) < least:
            final = _regained(branch, samples, scale, fit.change * shrink, held=None)
            return Healed(final, "refit", fit.penalty, fit.shrink * shrink, kept.before, error)
    return best


def _judged(branch: Branch, samples: Samples, before: Sequence[float]) -> float:
    """The mean error on held-back tokens; infinite where a kind of text does worse than before."""
    errors = _errors(branch, samples)
    worse = any(now > then for now, then in zip(errors, before, strict=True))
    return float("inf") if worse else float(np.mean(errors))


def _errors(branch: Branch, samples: Samples) -> list[float]:
    """Σ w|b(a) − Y|² / Σ w|Y|² over the held-back tokens, of every kind of text."""
    errors = []
    for kind in range(samples.chunks.n_kinds):
        left = whole = 0.0
        for inputs, wanted, weights in samples.blocks(kind, held=True):
            left += float((np.square(branch(inputs) - wanted).sum(axis=1) * weights).sum(dtype=np.float64))
            whole += float((np.square(wanted).sum(axis=1) * weights).sum(dtype=np.float64))
        errors.append(left / max(whole, 1e-30))
    return errors


def _gains(branch: Branch, samples: Samples, held: bool | None) -> Float32:
    """Least squares of g for this W, a little towards the old g."""
    assert branch.gain is not None
    bare = replace(branch, gain=np.ones_like(branch.gain))
    up, down = np.zeros(len(branch.gain)), np.zeros(len(branch.gain))
    for inputs, wanted, weights in samples.blocks(held=held, at_most=_FEW):
        normed = bare(inputs)
        up += (normed * wanted * weights[:, None]).sum(axis=0)
        down += (normed * normed * weights[:, None]).sum(axis=0)
    ridge = _GAIN_RIDGE * down.mean()
    return np.asarray((up + ridge * branch.gain) / (down + ridge), np.float32)


def _turned(weight: Float32, branch: Branch, samples: Samples) -> tuple[float, Fit]:
    """(s, fit): s · weight + D is nearest to the direction that is wanted with the gains of `branch`."""
    assert branch.gain is not None
    least = 0.05 * float(np.abs(branch.gain).mean())
    gain = np.where(np.abs(branch.gain) < least, np.copysign(least, branch.gain), branch.gain).astype(np.float32)

    def direction(wanted: Float32, weights: Float32) -> tuple[Float32, Float32]:
        turned = wanted / gain
        size = rms(turned, branch.epsilon)
        return turned / size, weights * np.square(size[:, 0])

    total = count = 0.0
    for _, wanted, weights in samples.blocks(held=False, at_most=_FEW):
        total += float(direction(wanted, weights)[1].sum(dtype=np.float64))
        count += len(weights)
    mean = total / count

    def limited(wanted: Float32, weights: Float32) -> tuple[Float32, Float32]:
        turned, sizes = direction(wanted, weights)
        return turned, np.asarray(np.minimum(sizes / mean, _WEIGHT_LIMIT), np.float32)

    up = down = 0.0
    for inputs, wanted, weights in samples.blocks(held=False, at_most=_FEW):
        turned, sizes = limited(wanted, weights)
        old = inputs @ weight.T
        up += float(((old * turned).sum(axis=1) * sizes).sum(dtype=np.float64))
        down += float((np.square(old).sum(axis=1) * sizes).sum(dtype=np.float64))
    scale = max(up / max(down, 1e-30), 1e-6)
    scaled = (weight * np.float32(scale)).T

    def residual(inputs: Float32, wanted: Float32, weights: Float32) -> tuple[Float32, Float32, Float32]:
        turned, sizes = limited(wanted, weights)
        return turned - inputs @ scaled, turned, sizes

    return scale, _ridge(weight, samples, residual)


def _regained(branch: Branch, samples: Samples, scale: float, change: Sums, held: bool | None) -> Branch:
    """W = s · W₀ + D in the scale of W₀, and the gains that go with it."""
    weight = np.asarray(branch.weight * scale + change.T, np.float32)
    weight *= np.sqrt(np.square(branch.weight).mean() / np.square(weight).mean())
    turned = replace(branch, weight=weight)
    return replace(turned, gain=_gains(turned, samples, held))
