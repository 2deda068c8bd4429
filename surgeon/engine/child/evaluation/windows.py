"""A text in chunks of n_ctx tokens, run through the model: the windows of llama-perplexity and llama-imatrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surgeon.engine.child.llama.model import Context, ContextSize, LlamaModel, Logits, Tokens
from surgeon.engine.errors import EngineError

_LOGITS_BYTES = 512 << 20  # of one decode; large vocabularies run fewer sequences at once


@dataclass(frozen=True)
class Rows:
    """Logits of consecutive positions of one chunk.

    position: of the first row. logits: float32[n, n_vocab], a view that the next window overwrites; targets: int32[n],
    the token that follows each. ends: these are the chunk's last rows.
    """

    chunk: int
    position: int
    logits: Logits
    targets: Tokens
    ends: bool


def read_tokens(model: LlamaModel, path: str, *, parse_special: bool = False) -> Tokens:
    """The tokens of a text file as llama.cpp's tools see it: without its last newline, BOS as the vocabulary says."""
    if model.binding.llama.llama_vocab_get_add_eos(model.vocab):
        raise EngineError(f"{model.path}: the vocabulary adds an end-of-text token, which these measures do not allow")
    text = Path(path).read_bytes()
    refuse_utf16(text, path)
    return model.tokenize(text.removesuffix(b"\n"), parse_special=parse_special)


def refuse_utf16(text: bytes, path: str) -> None:
    """Raises EngineError where the text is not UTF-8."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff")) or text[:4096].count(b"\0") > len(text[:4096]) // 8:
        raise EngineError(f"{path}: is not UTF-8 text, it looks like UTF-16; convert it (iconv -f utf-16 -t utf-8)")


def chunk_count(tokens: Tokens, n_ctx: int, path: str, wanted: int = -1, first: int = 0) -> int:
    """How many chunks to run after `first`. Raises EngineError for a text shorter than two, as llama.cpp does."""
    if n_ctx < 4:
        raise EngineError(f"-c {n_ctx}: a chunk needs at least 4 tokens")
    if len(tokens) < 2 * n_ctx:
        raise EngineError(
            f"{path}: {len(tokens)} tokens, but -c {n_ctx} needs {2 * n_ctx}: take a longer text or a smaller -c"
        )
    there = len(tokens) // n_ctx - first
    if there < 0:
        raise EngineError(f"{path}: has {len(tokens) // n_ctx} chunks of {n_ctx} tokens; {first} were to be left out")
    return there if wanted < 0 else min(there, wanted)


def window_size(model: LlamaModel, n_ctx: int, n_batch: int, n_ubatch: int, n_chunks: int) -> ContextSize:
    """The context for chunks of n_ctx: as many sequences at once as the batch holds, and memory for their logits."""
    by_memory = _LOGITS_BYTES // (4 * model.n_vocab * n_ctx)
    n_seq = max(1, min(n_batch // n_ctx, by_memory, n_chunks))
    return ContextSize(n_ctx, n_seq, min(n_batch, n_seq * n_ctx), n_ubatch)


def evaluate(context: Context, chunks: Tokens, first: int) -> Iterator[Rows]:
    """Run chunks (int32[n_chunks, n_ctx]) and yield the logits from position `first` on, in order.

    The first token of a chunk is replaced by BOS where the vocabulary adds one; targets stay the text's.
    """
    n_ctx, n_batch = chunks.shape[1], context.size.n_batch
    for start in range(0, len(chunks), context.size.n_seq):
        group = chunks[start : start + context.size.n_seq]
        context.clear()
        if n_batch >= n_ctx * len(group):
            yield from _one_decode(context, group, start, first)
        else:
            yield from _piecewise(context, group[0], start, first)


def _with_bos(context: Context, group: Tokens) -> Tokens:
    if context.model.bos is None:
        return group
    fed = group.copy()
    fed[..., 0] = context.model.bos
    return fed


def _one_decode(context: Context, group: Tokens, start: int, first: int) -> Iterator[Rows]:
    count, n_ctx = group.shape
    positions = np.tile(np.arange(n_ctx, dtype=np.int32), count)
    sequences = np.repeat(np.arange(count, dtype=np.int32), n_ctx)
    logits = context.decode(_with_bos(context, group).reshape(-1), positions, sequences, positions >= first)
    per_chunk = n_ctx - first
    for index in range(count):
        rows = logits[index * per_chunk : (index + 1) * per_chunk - 1]
        yield Rows(start + index, first, rows, group[index, first + 1 :], True)


def _piecewise(context: Context, chunk: Tokens, number: int, first: int) -> Iterator[Rows]:
    """One chunk that is longer than the batch."""
    n_ctx, n_batch = len(chunk), context.size.n_batch
    fed = _with_bos(context, chunk)
    for begin in range(0, n_ctx, n_batch):
        positions = np.arange(begin, min(begin + n_batch, n_ctx), dtype=np.int32)
        wanted = positions >= first
        logits = context.decode(fed[positions], positions, np.zeros(len(positions), np.int32), wanted)
        scored = positions[wanted]
        scored = scored[scored < n_ctx - 1]
        if len(scored):
            yield Rows(number, int(scored[0]), logits[: len(scored)], chunk[scored + 1], bool(scored[-1] == n_ctx - 2))
