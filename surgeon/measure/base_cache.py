"""Saved log-probabilities of unchanged models, which KL divergence is measured against: made once, kept in the cache.

Their size is 2 bytes × vocabulary × scored tokens, so the folder is kept below a limit; the oldest go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.gguf.identity import model_identity

LIMIT = 8 << 30  # bytes of all bases together; the newest one is kept whatever its size


@dataclass(frozen=True)
class Base:
    """The base for one model, text, context and number of chunks (-1: all), as one build of llama.cpp computes it."""

    model: Path
    text: Path
    n_ctx: int
    n_chunks: int
    engine: str
    folder: Path

    @property
    def path(self) -> Path:
        """Where it lies, or will. Raises SurgeonError where model or text cannot be read."""
        try:
            digest = hashlib.sha256(self.text.read_bytes())
        except OSError as error:
            raise SurgeonError(f"{self.text}: cannot be read: {error.strerror}") from error
        digest.update(f"{model_identity(self.model)} {self.n_ctx} {self.n_chunks} {self.engine}".encode())
        return self.folder / "bases" / f"{self.model.stem[:60]}-{digest.hexdigest()[:16]}.kld"


def estimated_bytes(n_vocab: int, n_ctx: int, n_chunks: int) -> int:
    """Size of a base file of so many chunks (surgeon.engine.child.evaluation.base_file has the layout)."""
    return n_chunks * (n_ctx - 1 - n_ctx // 2) * 2 * (2 * ((n_vocab + 1) // 2) + 4)


def used(path: Path) -> None:
    """Remember that this base was needed just now."""
    with contextlib.suppress(OSError):  # read-only cache: its age then decides
        os.utime(path)


def trim(folder: Path, limit: int = LIMIT) -> list[Path]:
    """Remove the bases not used for the longest time until all fit into `limit` bytes; which were removed."""
    found = []
    for path in (folder / "bases").glob("*.kld"):
        with contextlib.suppress(FileNotFoundError):  # another surgeon removed it
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    removed = []
    room = limit
    for place, (_, size, path) in enumerate(sorted(found, reverse=True)):
        room -= size
        if place and room < 0:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed
