"""Fixtures for all tests: the golden set's input files and the bundled model."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DEMO = TESTS.parent / "surgeon" / "demo"

sys.path.insert(0, str(TESTS / "core"))  # gguf_builder, for tests in every folder


@pytest.fixture(autouse=True)
def _size_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot test leaves its size in these, and a program on a pseudo terminal would take it for its own."""
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _hangups_are_heeded() -> None:
    """Tests that run under nohup would hand its deaf ear on to every program they start."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def golden_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the golden set's inputs, made once per run and shared by all workers; nobody writes into it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "golden"
    with (shared / "golden.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = shared / "golden.partial"
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, str(TESTS / "golden" / "make_models.py"), str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The bundled model: llama, 12 layers, F16."""
    return DEMO / "novels-12M-F16.gguf"


@pytest.fixture(scope="session")
def demo_imatrix() -> Path:
    """The bundled model's importance matrix: 85 entries, 60 chunks."""
    return DEMO / "mixed.imatrix.gguf"
