"""Which chunks of the calibration texts are fitted, and which of them are held back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from surgeon.engine.child.evaluation.windows import read_tokens
from surgeon.engine.child.healing.samples import Chunks
from surgeon.engine.child.llama.model import LlamaModel, Tokens
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import FEWEST_TOKENS, HealJob

_HELD_EVERY = 5


@dataclass(frozen=True)
class Selection:
    """fed: int32[n_chunks, n_ctx] as the model gets them, BOS first where the vocabulary has one; counts: per text."""

    fed: Tokens
    chunks: Chunks
    counts: list[int]

    @property
    def n_chunks(self) -> int:
        return len(self.fed)

    @property
    def tokens(self) -> int:
        return int(self.fed.size)


def select(model: LlamaModel, job: HealJob) -> Selection:
    """As many chunks of each text, spread over it, as the job wants tokens; every fifth is held back.

    Raises EngineError where a text has fewer than two chunks, or all together too few tokens for the width.
    """
    texts = [_chunks(model, path, job.n_ctx) for path in job.texts]
    wanted = math.ceil(job.tokens_per_column * job.columns / job.n_ctx)
    counts = shares([len(chunks) for chunks in texts], wanted)
    tokens = sum(counts) * job.n_ctx
    if tokens < FEWEST_TOKENS * job.columns:
        raise EngineError(
            f"{', '.join(job.texts)}: {tokens:,} tokens are {tokens / job.columns:.1f} for each of {job.columns:,} "
            f"columns of ffn_down; at least {FEWEST_TOKENS:.0f} are needed and 30 are good: give more text"
        )
    fed, kinds, held = [], [], []
    for kind, (chunks, count) in enumerate(zip(texts, counts, strict=True)):
        chosen = np.linspace(0, len(chunks) - 1, count).astype(int)
        fed.append(chunks[chosen])
        kinds += [kind] * count
        held += held_back(count)
    stacked = np.concatenate(fed)
    if model.bos is not None:
        stacked[:, 0] = model.bos
    return Selection(stacked, Chunks(np.array(kinds), np.array(held), job.n_ctx), counts)


def shares(available: list[int], wanted: int) -> list[int]:
    """`wanted` dealt out evenly; what one cannot give is asked of the others."""
    given = [0] * len(available)
    open_ = [index for index, count in enumerate(available) if count]
    while open_ and (left := wanted - sum(given)) > 0:
        share = max(1, left // len(open_))
        for index in open_:
            given[index] += min(share, available[index] - given[index], wanted - sum(given))
        open_ = [index for index in open_ if given[index] < available[index]]
    return [max(count, min(2, there)) for count, there in zip(given, available, strict=True)]


def held_back(count: int) -> list[bool]:
    """Every fifth of `count` chunks, or the last where there are fewer."""
    held = [index % _HELD_EVERY == _HELD_EVERY - 1 for index in range(count)]
    if not any(held):
        held[-1] = True
    return held


def _chunks(model: LlamaModel, path: str, n_ctx: int) -> Tokens:
    tokens = read_tokens(model, path)
    count = len(tokens) // n_ctx
    if count < 2:
        raise EngineError(
            f"{path}: {len(tokens)} tokens, but healing needs two chunks of {n_ctx} of every text; take a longer one"
        )
    return tokens[: count * n_ctx].reshape(count, n_ctx).copy()
