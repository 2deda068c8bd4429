"""How a text, or saved log-probabilities, fall into chunks: told before the chunks are shared out."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.child.evaluation.kl_divergence import require_same_tokens
from surgeon.engine.child.evaluation.windows import chunk_count, read_tokens, window_size
from surgeon.engine.child.llama.model import LlamaModel
from surgeon.engine.protocol import CountJob, Finished, Message


def measure(model: LlamaModel, job: CountJob) -> Iterator[Message]:
    """Finished with tokens, chunks, their length, and how many run at once."""
    if job.base:
        base = BaseFile(job.base)
        require_same_tokens(model, base, None)
        n_tokens, n_ctx = int(base.tokens.size), base.n_ctx
        n_chunks = base.n_chunks if job.n_chunks < 0 else min(base.n_chunks, job.n_chunks)
    else:
        tokens = read_tokens(model, job.text, parse_special=job.parse_special)
        n_tokens, n_ctx = len(tokens), job.n_ctx
        n_chunks = chunk_count(tokens, n_ctx, job.text, job.n_chunks, job.first_chunk)
    n_seq = window_size(model, n_ctx, job.n_batch, job.n_batch, n_chunks).n_seq
    yield Finished({"n_tokens": n_tokens, "n_chunks": n_chunks, "n_ctx": n_ctx, "n_seq": n_seq})
