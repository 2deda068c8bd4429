"""The user's own config and kept plans stay out of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_user_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def model_copy(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the bundled model that may be written beside."""
    copy = tmp_path / "novels-12M-F16.gguf"
    copy.write_bytes(demo_model.read_bytes())
    return copy
