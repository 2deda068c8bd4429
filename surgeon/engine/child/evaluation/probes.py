"""Probes: the KL divergence with some weights exchanged, again and again on one loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.child.evaluation.kl_divergence import divergence, require_same_tokens
from surgeon.engine.child.evaluation.windows import window_size
from surgeon.engine.child.llama.exchanged_weights import WeightExchange
from surgeon.engine.child.llama.model import LlamaModel
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Evaluate, Message, Probed, ProbeJob, Started, Swap


def measure(model: LlamaModel, job: ProbeJob, threads: int, requests: Iterator[Message]) -> Iterator[Message]:
    """Started; then, for every Evaluate among the requests, a Step per chunk and a Probed. Ends with the requests."""
    base = BaseFile(job.base)
    require_same_tokens(model, base, None)
    n_chunks = base.n_chunks if job.n_chunks < 0 else min(base.n_chunks, job.n_chunks)
    size = window_size(model, base.n_ctx, job.n_batch, job.n_ubatch, n_chunks)
    weights = WeightExchange(model, threads)
    yield Started(base.tokens.size, n_chunks, base.n_ctx)
    for request in requests:
        if isinstance(request, Swap):
            weights.swap(request.name, request.type, request.arrays["data"].astype(np.uint8, copy=False))
        elif isinstance(request, Evaluate):
            values: dict[str, Any] = {"unused": weights.unused, "inexact": weights.inexact}
            if not (request.exact and weights.inexact):
                values |= yield from divergence(model, base, n_chunks, size, threads)
            weights.restore()
            yield Probed(request.label, values)
        else:
            raise EngineError(f"a probe cannot answer {type(request).__name__}")
