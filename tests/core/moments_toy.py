"""Files of second moments for tests, from rows that the test makes up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from surgeon.moments.files import write_moments
from surgeon.moments.moments import Head, Input
from surgeon.moments.triangle import Float32, spans_of

HEAD = Head(0, 2, "0123456789abcdef", "toy.gguf", ("toy.txt",), 4, 100)


class Toy:
    """Sums of rows float32[n, columns] per input; the first half of the rows is the first half of the text."""

    def __init__(self, rows: Mapping[str, np.ndarray], halves: int = 2, block: int = 0) -> None:
        self.rows, self._halves, self._block = dict(rows), halves, block
        self.users = {name: name for name in rows}
        self.inputs = {
            name: Input(name, x.shape[1], 1, np.array([[len(part) for part in np.array_split(x, halves)]], np.int64))
            for name, x in rows.items()
        }

    def sums(self, one: Input, matrix: int, half: int) -> list[Float32]:
        assert matrix == 0
        x = np.array_split(self.rows[one.name], self._halves)[half]
        return [x[:, a:b].T @ x[:, a:b] for a, b in spans_of(one.columns, self._block)]


def toy_moments(path: Path, toy: Toy, head: Head = HEAD) -> Path:
    for _ in write_moments(path, head, [toy]):
        pass
    return path
