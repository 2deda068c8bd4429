"""What llama.cpp would allocate for a context, read from its log: the model is laid out, but nothing of it is read."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.protocol import Finished, MemoryJob, Message


def measure(model: LlamaModel, job: MemoryJob, threads: int) -> Iterator[Message]:
    """Finished, once the context was made; its sizes are on the log."""
    size = ContextSize(job.n_ctx // job.n_seq, job.n_seq, min(2048, job.n_ctx), job.n_ubatch)
    settings = {"type_k": job.cache_type, "type_v": job.cache_type, "swa_full": 0}
    with opened(model, size, threads, settings=settings):
        yield Finished({"n_ctx": job.n_ctx})
