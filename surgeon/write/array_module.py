"""Factors of second moments on a GPU, by an array module that is installed and sees one: torch or CuPy.

The factor is the part of the feedback encoder whose work grows with the cube of a width. Its last bits are the
device's: a few weights may be rounded otherwise than by the processor. Writes that are resumed stay valid either way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODULES = ("torch", "cupy")
_DEVICE_FILES = ("/dev/nvidia0", "/dev/kfd")  # importing a module takes seconds; without these there is nothing to find
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ArrayModule:
    """name: for people; put: an array of ours there; cholesky: its lower factor, None where it is not positive
    definite; fetch: what is there as an array of ours."""

    name: str
    put: Callable[[Matrix], Any]
    cholesky: Callable[[Any], Any]
    fetch: Callable[[Any], Matrix]

    def elsewhere(self, matrix: Matrix) -> Callable[[int], Matrix] | None:
        """As `surgeon_kernels.factor` takes it."""
        lower = self.cholesky(self.put(matrix))
        return None if lower is None else lambda j: self.fetch(lower[j:, j : j + 64])


def with_torch(device: str) -> ArrayModule:
    """Raises ImportError."""
    import torch

    def cholesky(matrix: Any) -> Any:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if int(failed) else lower

    return ArrayModule(
        f"torch {torch.__version__} ({device})",
        lambda matrix: torch.from_numpy(matrix).to(device),
        cholesky,
        lambda part: np.asarray(part.cpu().numpy()),
    )


def with_cupy() -> ArrayModule:
    """Raises ImportError."""
    import cupy

    def cholesky(matrix: Any) -> Any:
        lower = cupy.linalg.cholesky(cupy.tril(matrix) + cupy.tril(matrix, -1).T)
        return lower if bool(cupy.isfinite(lower).all()) else None

    return ArrayModule(f"cupy {cupy.__version__}", cupy.asarray, cholesky, lambda part: np.asarray(cupy.asnumpy(part)))


@cache
def found() -> ArrayModule | None:
    """The module that sees a GPU; None where there is none, or no module."""
    if not any(Path(file).exists() for file in _DEVICE_FILES):
        return None
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return with_torch("cuda")
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        if cupy.cuda.is_available():
            return with_cupy()
    return None
