"""How far the embeddings of a model are from those of the original: the cosine of both, line by line of a text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Embedded, EmbeddingJob, Engine, Finished, Loaded, Message, Step
from surgeon.gguf.file import open_gguf
from surgeon.gguf.values import ValueType
from surgeon.model.kinds import refuse_without_embeddings, text

_NONE, _MEAN, _RANK = 0, 1, 4  # enum llama_pooling_type
_AS_THE_MODEL_SAYS = -1
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """What is compared. lines: of the text, -1 for all; n_ctx: tokens of a line at most."""

    model: str
    original: str
    text: str
    n_ctx: int = 512
    lines: int = -1

    def messages(self, engine: Engine, cancelled: threading.Event | None = None) -> Iterator[Message]:
        """Loaded, a Step per line and model, Finished with mean_cosine, mean_cosine_error, min_cosine, n_tokens,
        n_chunks (lines) and n_ctx. Raises SurgeonError for a model without embeddings, EngineError, Cancelled.
        """
        pooling = [_pooling(path) for path in (self.original, self.model)]
        found: list[Rows] = []
        values: dict[str, float] = {}
        for path, kind in zip((self.original, self.model), pooling, strict=True):
            job = EmbeddingJob(path, self.text, self.n_ctx, self.lines, kind)
            for message in EngineRun(engine, job, cancelled).messages():
                if isinstance(message, Embedded):
                    found.append(message.arrays["rows"].astype(np.float32, copy=False))
                elif isinstance(message, Finished):
                    values = message.values
                elif isinstance(message, Step):
                    yield Step(message.done + (message.total if len(found) else 0), 2 * message.total, {})
                elif isinstance(message, Loaded):
                    yield message
        yield Finished({**values, **self._figures(*found)})

    def _figures(self, original: Rows, other: Rows) -> dict[str, float]:
        if original.shape != other.shape:
            raise EngineError(
                f"{self.model}: its embeddings have {other.shape[1]} values, those of {self.original} "
                f"{original.shape[1]}; compare a model with the one it was made from"
            )
        for path, rows in ((self.original, original), (self.model, other)):
            if not np.isfinite(rows).all() or not rows.any(axis=1).all():
                raise EngineError(f"{path}: an embedding is NaN or zero; `surgeon verify` names the tensor at fault")
        return cosine_figures(original, other)


def cosine_figures(a: Rows, b: Rows) -> dict[str, float]:
    """Mean and lowest cosine of float32[n, width] row by row, n ≥ 2, and the standard error of the mean."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosines = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return {
        "mean_cosine": float(cosines.mean()),
        "mean_cosine_error": float(cosines.std(ddof=1) / np.sqrt(len(cosines))),
        "min_cosine": float(cosines.min()),
    }


def _pooling(path: str) -> int:
    """How a line's vectors become one: as the file says; their mean where it does not say. Raises SurgeonError."""
    refuse_without_embeddings(path)
    with open_gguf(Path(path)) as file:
        value = file.kv.get(f"{text(file, 'general.architecture')}.pooling_type")
    stated = value.small() if value is not None and value.type is not ValueType.STRING else _NONE
    if stated == _RANK:
        raise EngineError(f"{path}: is a reranker, whose answer is a score and no embedding")
    return _MEAN if stated in (_NONE, None) else _AS_THE_MODEL_SAYS
