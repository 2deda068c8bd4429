"""What pruning experts costs, measured: KL divergence from the whole model with each set of experts silenced."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.child.evaluation.windows import chunk_count, read_tokens
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.child.llama.silenced_experts import Silencer
from surgeon.engine.child.scans.prune_scan import compared, save_base
from surgeon.engine.comparison import Comparison, statistics
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import ExpertDamage, ExpertScanJob, Finished, Message, Silence, Started, Step


def measure(model: LlamaModel, job: ExpertScanJob, threads: int, requests: Iterator[Message]) -> Iterator[Message]:
    """Started, a Step per chunk of each run, an ExpertDamage per set, Finished."""
    tokens = read_tokens(model, job.text)
    n_chunks = chunk_count(tokens, job.n_ctx, job.text, job.n_chunks)
    before = 0 if job.base_is_made else 1
    total = (before + len(job.sets)) * n_chunks
    yield Started(len(tokens), total, job.n_ctx)
    chunks = tokens[: n_chunks * job.n_ctx].reshape(n_chunks, job.n_ctx)
    # One sequence at a time, every row an output: rows then keep their order through the last layer.
    size = ContextSize(job.n_ctx, 1, job.n_ctx, job.n_ubatch)
    silencer = Silencer(model)
    with opened(model, size, threads, silencer) as context:
        for chunk in () if job.base_is_made else save_base(context, job.base, chunks):
            yield Step(chunk + 1, total)
        base = BaseFile(job.base)
        if not np.array_equal(base.tokens, chunks):
            raise EngineError(f"{job.base}: was saved from another text or with another -c; remove it")
        for number, sets in enumerate(chain(job.sets, _asked(requests) if job.more else ())):
            silencer.silenced = {int(layer): frozenset(gone) for layer, gone in sets.items()}
            silencer.reached = set()
            parts: list[Comparison] = []
            for chunk, part in compared(context, base):
                parts.append(part)
                yield Step((before + number) * n_chunks + chunk + 1, total)
            silencer.require_all()
            figures = statistics(Comparison.joined(parts), final=False)
            yield ExpertDamage(
                number, figures["mean_kld"], figures["mean_kld_error"], figures["ppl"], figures["same_top"]
            )
    yield Finished({"n_chunks": n_chunks, "n_ctx": job.n_ctx})


def _asked(requests: Iterator[Message]) -> Iterator[dict[str, list[int]]]:
    """The experts to silence among the requests."""
    for request in requests:
        if not isinstance(request, Silence):
            raise EngineError(f"a scan of experts cannot answer {type(request).__name__}")
        yield request.sets
