"""The embedding of every line of a text, as an embedding model is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from surgeon.engine.child.evaluation.windows import refuse_utf16
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, Tokens, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Embedded, EmbeddingJob, Finished, Message, Started, Step


def measure(model: LlamaModel, job: EmbeddingJob, threads: int) -> Iterator[Message]:
    """Started, a Step per line, Embedded with `rows` float32[lines, width], Finished with n_tokens, n_chunks, n_ctx."""
    limit = min(job.n_ctx, model.n_ctx_train) if model.n_ctx_train > 0 else job.n_ctx
    lines = [cut(tokens, limit) for tokens in _tokenized(model, job)]
    n_tokens = sum(map(len, lines))
    yield Started(n_tokens, len(lines), limit)
    settings = {"embeddings": 1}
    if job.pooling >= 0:
        settings["pooling_type"] = job.pooling
    rows = []
    with opened(model, ContextSize(limit, 1, limit, limit), threads, settings=settings) as context:
        for tokens in lines:
            rows.append(context.embedding(tokens))
            yield Step(len(rows), len(lines), {})
    yield Embedded({"rows": np.stack(rows)})
    yield Finished({"n_tokens": n_tokens, "n_chunks": len(lines), "n_ctx": limit})


def cut(tokens: Tokens, limit: int) -> Tokens:
    """At most `limit` tokens; the last one, which may be the mark of the end, stays."""
    return tokens if len(tokens) <= limit else np.concatenate([tokens[: limit - 1], tokens[-1:]])


def _tokenized(model: LlamaModel, job: EmbeddingJob) -> list[Tokens]:
    text = Path(job.text).read_bytes()
    refuse_utf16(text, job.text)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line][: job.n_texts if job.n_texts >= 0 else None]
    if len(lines) < 2:
        raise EngineError(f"{job.text}: has {len(lines)} lines of text; a mean with its error needs at least 2")
    return [model.tokenize(line) for line in lines]
