"""Fixtures of the engine's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from engine_helpers import TEXT, Base, figures

from surgeon.engine.protocol import PerplexityJob

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """xllamacpp's wheel has C symbols everywhere but on Windows; elsewhere its absence is a broken environment."""
    if sys.platform != "win32" or importlib.util.find_spec("llama_cpp") is not None:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no llama.cpp with C symbols for Windows on PyPI"))


@pytest.fixture(scope="session")
def base(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    path = tmp_path_factory.mktemp("base") / "base.kld"
    job = PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, n_chunks=4, save_base=str(path))
    return Base(path, figures(job))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's log and state directories stay as they are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))
    monkeypatch.delenv("LLAMA_CPP_LIB_DIR", raising=False)
    return tmp_path / "home"
