"""Real workers: processes of one thread each, as `dask worker --nthreads 1 --resources engine=1` starts them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster
from fleet_helpers import ROOT, workers

sys.path += [str(ROOT / "tests" / folder) for folder in ("engine", "core")]  # engine_helpers, toy_experts


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two workers, for all tests that leave them alive."""
    with workers(2, tmp_path_factory.mktemp("workers")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def scheduler(cluster: LocalCluster) -> str:
    return str(cluster.scheduler_address)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders stay as they are; compiled kernels are shared with the other tests."""
    for kind in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / "home" / kind.lower()))
    monkeypatch.delenv("LLAMA_CPP_LIB_DIR", raising=False)
    return tmp_path / "home"
