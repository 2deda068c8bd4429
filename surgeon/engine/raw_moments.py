"""The file through which the engine's child process hands over second moments: Σ x xᵀ of every input, in panels.

    u32 length of a JSON text | the text, blanks up to a multiple of 64 | float32 panels back to back | XXH3 of it all

They may be gigabytes: too much for the pipe, and the parent needs one input at a time. An input's panels come matrix by
matrix (experts), within it half by half of the calibration text. A panel is `PANEL` rows of the upper triangle, from
the column of its first row to the end of the diagonal block.
"""

from __future__ import annotations

import glob
import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from surgeon.engine.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Rows of a panel: enough for one matrix product to be fast, few enough that little is computed twice along the diagonal
# (of 64 to 512, 192 was the quickest on inputs of 576, 1536 and 4096 columns, one thread of a 2.4 GHz Zen 3).
PANEL = 192
_ALIGNMENT = 64
_AGAIN = "remove it, and start again without --resume"
_CHECKSUM = 4  # values at the end that are none: 128 bits


@dataclass(frozen=True, slots=True)
class RawInput:
    """One input. weight: the first that multiplies it; users: all that do; tokens[matrix][half]: rows added up."""

    weight: str
    users: list[str]
    columns: int
    matrices: int
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Contents:
    """What the file holds. chunks: the first chunk of the text that is not in it; block: of the diagonal, 0 for all;
    run: the digest of the collection it belongs to.
    """

    chunks: int
    block: int
    halves: int
    inputs: list[RawInput]
    run: str = ""


def panels(columns: int, block: int) -> list[tuple[int, int, int]]:
    """(first row, end of rows, end of columns) of each panel; a panel's columns begin with its first row."""
    step = block or columns
    return [
        (first, min(first + PANEL, start + step, columns), min(start + step, columns))
        for start in range(0, columns, step)
        for first in range(start, min(start + step, columns), PANEL)
    ]


def panel_values(columns: int, block: int) -> int:
    """Values in all panels of one matrix and half."""
    return sum((end - first) * (last - first) for first, end, last in panels(columns, block))


def write(path: Path, contents: Contents, values: Iterable[NDArray[np.float32]]) -> None:
    """Write all panels, in order; the file has its name only when it is whole. Raises EngineError."""
    text = json.dumps(asdict(contents)).encode()
    text = text.ljust(-(-(len(text) + 4) // _ALIGNMENT) * _ALIGNMENT - 4)
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # and no link is followed
        with part.open("xb") as file:
            head = struct.pack("<I", len(text)) + text
            checksum = xxhash.xxh3_128(head)
            file.write(head)
            for panel in values:
                checksum.update(panel.data)
                file.write(panel.data)
            file.write(checksum.digest())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EngineError(f"{path}: the second moments cannot be kept: {error.strerror or error}") from None


class RawMoments:
    """Such a file, mapped; panels are read when asked for.

    run: the digest of the collection it must belong to. Raises EngineError where it is another's, damaged or missing.
    """

    def __init__(self, path: Path, run: str = "") -> None:
        import numpy as np

        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(4)
                (length,) = struct.unpack("<I", head)
                head += file.read(length)
            self.contents = _contents(json.loads(head[4:]))
            values: NDArray[np.float32] = np.memmap(path, np.float32, "r", offset=4 + length)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise EngineError(
                f"{path}: the second moments collected so far cannot be read ({error}); {_AGAIN}"
            ) from None
        if self.contents.run != run:
            raise EngineError(f"{path}: holds second moments of another collection; {_AGAIN}")
        count = sum(self._per_matrix(one) * one.matrices for one in self.contents.inputs)
        if values.size != count + _CHECKSUM:
            raise EngineError(f"{path}: the second moments collected so far are cut off; {_AGAIN}")
        if values[count:].tobytes() != _checksum(head, values[:count]):
            raise EngineError(
                f"{path}: the second moments so far are not as they were left (their checksum differs); {_AGAIN}"
            )
        self._values = values
        self._starts: dict[str, int] = {}
        start = 0
        for one in self.contents.inputs:
            self._starts[one.weight] = start
            start += self._per_matrix(one) * one.matrices

    def panels(self, one: RawInput, matrix: int, half: int) -> list[NDArray[np.float32]]:
        """The panels of Σ x xᵀ, float32[rows, columns] each: views of the mapped file."""
        start = self._starts[one.weight] + self._per_matrix(one) * matrix
        start += self._per_matrix(one) // self.contents.halves * half
        found = []
        for first, end, last in panels(one.columns, self.contents.block):
            shape = (end - first, last - first)
            found.append(self._values[start : start + shape[0] * shape[1]].reshape(shape))
            start += shape[0] * shape[1]
        return found

    def _per_matrix(self, one: RawInput) -> int:
        return panel_values(one.columns, self.contents.block) * self.contents.halves


def raw_path(stem: str, chunks: int) -> Path:
    """Where the sums up to that chunk are kept."""
    return Path(f"{stem}.{chunks}")


def remove_raw(stem: str, before: int | None = None) -> None:
    """Remove the sums kept under this stem; `before`: only those of fewer chunks."""
    path = Path(stem)
    for found in path.parent.glob(f"{glob.escape(path.name)}.*"):
        number = found.name[len(path.name) + 1 :].removesuffix(".part")
        if number.isdigit() and (before is None or int(number) < before):
            found.unlink(missing_ok=True)


def _contents(found: dict[str, Any]) -> Contents:
    inputs = [RawInput(**one) for one in found["inputs"]]
    return Contents(int(found["chunks"]), int(found["block"]), int(found["halves"]), inputs, str(found["run"]))


def _checksum(head: bytes, values: NDArray[np.float32]) -> bytes:
    checksum = xxhash.xxh3_128(head)
    if values.size:
        checksum.update(values.data)
    return checksum.digest()
