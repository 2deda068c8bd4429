"""What pruning experts costs, measured: KL divergence from the whole model with each set of experts silenced."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.child.evaluation.windows import chunk_count, read_tokens
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.child.llama.silenced_experts import Silencer
from surgeon.engine.child.scans.prune_scan import compared, save_base
from surgeon.engine.comparison import Comparison, statistics
from surgeon.engine.protocol import ExpertDamage, ExpertScanJob, Finished, Message, Started, Step


def measure(model: LlamaModel, job: ExpertScanJob, threads: int) -> Iterator[Message]:
    """Started, a Step per chunk of each run, an ExpertDamage per set, Finished."""
    tokens = read_tokens(model, job.text)
    n_chunks = chunk_count(tokens, job.n_ctx, job.text, job.n_chunks)
    total = (1 + len(job.sets)) * n_chunks
    yield Started(len(tokens), total, job.n_ctx)
    chunks = tokens[: n_chunks * job.n_ctx].reshape(n_chunks, job.n_ctx)
    # One sequence at a time, every row an output: rows then keep their order through the last layer.
    size = ContextSize(job.n_ctx, 1, job.n_ctx, job.n_ubatch)
    silencer = Silencer(model)
    with opened(model, size, threads, silencer) as context:
        for chunk in save_base(context, job.base, chunks):
            yield Step(chunk + 1, total)
        base = BaseFile(job.base)
        for number, sets in enumerate(job.sets):
            silencer.silenced = {int(layer): frozenset(gone) for layer, gone in sets.items()}
            silencer.reached = set()
            parts: list[Comparison] = []
            for chunk, part in compared(context, base):
                parts.append(part)
                yield Step((1 + number) * n_chunks + chunk + 1, total)
            silencer.require_all()
            figures = statistics(Comparison.joined(parts), final=False)
            yield ExpertDamage(
                number, figures["mean_kld"], figures["mean_kld_error"], figures["ppl"], figures["same_top"]
            )
    yield Finished({"n_chunks": n_chunks, "n_ctx": job.n_ctx})
