"""Files by path on shared storage: a worker looks whether its file is the one that was meant, before it works."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from surgeon.fleet.errors import FleetError
from surgeon.gguf.file import shards_of
from surgeon.gguf.identity import file_identity


@dataclass(frozen=True)
class SharedFile:
    """A file that both sides read. identity: its `file_identity`."""

    path: str
    size: int
    identity: str

    def require_same(self, worker: str) -> None:
        """Raises FleetError, naming the worker, where its file is another or missing."""
        try:
            found = _shared(Path(self.path))
        except OSError as error:
            raise FleetError(
                f"worker {worker}: {self.path}: {error.strerror}; files must lie under the same path on every machine"
            ) from None
        if found != self:
            sizes = f"{found.size:,} bytes there, {self.size:,} here"
            raise FleetError(f"worker {worker}: {self.path}: is another file there ({sizes}); put the files on storage "
                             "that all machines share")  # fmt: skip


def shared_files(paths: Iterable[Path | str | None]) -> tuple[SharedFile, ...]:
    """These files, all shards of models included. Raises FleetError where one cannot be read here."""
    found = []
    for path in dict.fromkeys(Path(os.path.abspath(name)) for name in paths if name):
        for part in shards_of(path) if path.suffix == ".gguf" else (path,):
            try:
                found.append(_shared(part))
            except OSError as error:
                raise FleetError(f"{part}: cannot be read: {error.strerror}") from None
    return tuple(found)


def _shared(path: Path) -> SharedFile:
    return SharedFile(str(path), path.stat().st_size, file_identity(path))


def digest_of(*parts: object) -> str:
    """16 hex digits of what these parts print as."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
