"""Blocks that ggml's x86-64 build wrote, to hold every platform to.

    python tests/kernels/golden_blocks.py       record golden_blocks.json anew (x86-64 Linux only)

The inputs are made of whole numbers divided by powers of two, exact on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX, USES_IMATRIX

RECORD = Path(__file__).with_name("golden_blocks.json")
_COLUMNS = 256


def rows() -> NDArray[np.float32]:
    """float32[4, 256]: spread values, one-signed ones, ties with an outlier, and a row with empty groups."""
    i = np.arange(_COLUMNS)
    spread = ((i * 7919 + 13) % 2003 - 1001) / 16384
    one_signed = ((i * 104729 + 7) % 509 + 200) / 8192
    ties = ((i * 31) % 7 - 3) / 64
    ties[77] = 2.5
    holes = np.where((i // 16) % 3 == 0, 0, ((i * 613) % 1021 - 510) / 4096)
    holes[:32] = 0
    return np.stack([spread, one_signed, ties, holes]).astype(np.float32)


def weights() -> NDArray[np.float32]:
    """float32[256], uneven, with zeros."""
    i = np.arange(_COLUMNS)
    return ((i * 29 % 23) ** 2 / 64).astype(np.float32)


def combinations(names: frozenset[str]) -> Iterator[tuple[str, bool]]:
    for name in FORMATS:
        if name in names:
            if name not in REQUIRES_IMATRIX:
                yield name, False
            if name in USES_IMATRIX:
                yield name, True


def key(name: str, weighted: bool) -> str:
    return f"{name} imatrix" if weighted else name


def main() -> None:
    from oracle import oracle

    from surgeon_kernels import quantizable

    record = {
        key(name, weighted): [
            block.tobytes().hex() for block in oracle().quantize(rows(), name, weights() if weighted else None)
        ]
        for name, weighted in combinations(quantizable)
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record)} combinations, {sum(map(len, record.values()))} rows")


if __name__ == "__main__":
    main()
