"""The oracle as a fixture, and a count of the blocks that were found identical to ggml's."""

from __future__ import annotations

from collections import Counter

import pytest
from oracle import BYTE_EXACT, Oracle, oracle

from surgeon_kernels.formats import FORMATS

_identical: Counter[tuple[str, str]] = Counter()


@pytest.fixture(scope="session")
def ggml() -> Oracle:
    """ggml's quantizers; skipped where its bytes depend on the compiler (see oracle.py)."""
    if not BYTE_EXACT:
        pytest.skip("ggml's reference bytes are those of x86-64 Linux")
    return oracle()


@pytest.fixture(scope="session")
def identical_blocks() -> Counter[tuple[str, str]]:
    """(type, how) -> number of blocks compared and found identical."""
    return _identical


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _identical:
        values = sum(count for (name, _), count in _identical.items() if FORMATS[name].block == 1)
        terminalreporter.write_line(
            f"identical to ggml: {len(_identical)} combinations of type and importance matrix, "
            f"{sum(_identical.values()) - values:,} blocks and {values:,} single values of F16 and BF16"
        )
