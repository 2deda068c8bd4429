"""Streams on disk: mapped files without a name, so that nothing is left of them however the process ends."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from math import prod

import numpy as np

from surgeon.engine.child.healing.ridge import Float32
from surgeon.engine.errors import EngineError


@dataclass(frozen=True)
class Store:
    """folder: where the files lie; tokens: rows of each."""

    folder: str
    tokens: int

    def new(self, columns: int) -> Float32:
        """float32[tokens, columns], zeros; its space is reserved. Raises EngineError where the disk is too full."""
        return self.array(self.tokens, columns)

    def array(self, *shape: int) -> Float32:
        """The same of any shape."""
        nbytes = 4 * prod(shape)
        try:
            handle, name = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(handle, "r+b") as file:
                os.unlink(name)
                # A mapped file that meets a full disk ends the process, so its space is taken now.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, nbytes)
                return np.memmap(file, np.float32, "r+", shape=shape)
        except OSError as error:
            raise EngineError(
                f"{self.folder}: {nbytes / 1e9:.1f} GB for a stream cannot be written: {error.strerror}; make room, "
                "or set XDG_CACHE_HOME to a folder on another disk"
            ) from error
