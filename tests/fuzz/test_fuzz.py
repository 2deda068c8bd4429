"""No input of a stranger leads to a traceback or a hang: a few hundred of every kind, the same in every run."""

from __future__ import annotations

import pytest
from kinds_of_input import KINDS, tried

COUNTS = {"metadata": 150, "config": 150, "trials": 150}


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_raises_or_hangs(kind: str) -> None:
    failures = [text for seed in range(COUNTS.get(kind, 400)) if (text := tried(kind, seed))]
    assert failures == []
