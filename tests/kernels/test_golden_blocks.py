"""The bytes ggml wrote on x86-64 Linux, on whatever machine this is."""

from __future__ import annotations

import json

import pytest
from golden_blocks import RECORD, combinations, key, rows, weights

from surgeon_kernels import dequantizable, dequantize, quantizable, quantize

_RECORD: dict[str, list[str]] = json.loads(RECORD.read_text())
_ALL = list(combinations(quantizable))


@pytest.mark.parametrize(("name", "weighted"), _ALL, ids=[key(*pair) for pair in _ALL])
def test_golden(name: str, weighted: bool) -> None:
    blocks = quantize(rows(), name, weights() if weighted else None, compat=True)
    assert [block.tobytes().hex() for block in blocks] == _RECORD[key(name, weighted)]


@pytest.mark.parametrize("name", sorted(quantizable & dequantizable))
def test_restored_rows_resemble_the_input(name: str) -> None:
    """No format may lose more than its bits explain: a wrong layout loses everything."""
    restored = dequantize(quantize(rows()[:1], name, weights()), name)
    error = ((restored - rows()[:1]) ** 2).mean() / (rows()[:1] ** 2).mean()
    coarse = {"IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"}
    assert error < (0.6 if name in coarse else 0.3)
