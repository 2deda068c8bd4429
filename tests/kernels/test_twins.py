"""The kernels against the element-by-element restatements of twins.py, on rows at the edges; on every platform."""

from __future__ import annotations

import numpy as np
import pytest
from nasty import KINDS, group_of
from twins import TWINS

from surgeon_kernels import USES_IMATRIX, quantize
from surgeon_kernels.formats import FORMATS

_CASES = [(name, weighted) for name in TWINS for weighted in ((False, True) if name in USES_IMATRIX else (False,))]


@pytest.mark.parametrize(("name", "weighted"), _CASES)
def test_twin(name: str, weighted: bool) -> None:
    rng = np.random.default_rng(11)
    size = FORMATS[name].block
    kinds = [kind for kind in dict.fromkeys(KINDS) if kind != "denormals"]  # where C's casts are undefined
    rows = np.stack([group_of(kind, rng, size) for kind in kinds])
    weights = (rng.random(size) ** 3).astype(np.float32) if weighted else None
    if weights is not None:
        weights[:16][rng.random(16) < 0.5] = 0
    ours = quantize(rows, name, weights, compat=True)
    with np.errstate(all="ignore"):
        for kind, row, block in zip(kinds, rows, ours, strict=True):
            theirs = TWINS[name](list(row), None if weights is None else list(weights))
            assert block.tobytes().hex() == theirs.hex(), f"{name} on {kind}"
