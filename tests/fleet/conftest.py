"""Real workers: processes of one thread each, as `dask worker --nthreads 1 --resources engine=1` starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engine"))  # engine_helpers


def workers(count: int, home: Path, **options: object) -> LocalCluster:
    """A scheduler in this process, and workers whose state and caches lie in `home`."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    env = {"PYTHONPATH": path, "SURGEON_THREADS": "1"}
    env |= {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("STATE", "CONFIG")}
    return LocalCluster(
        n_workers=count, threads_per_worker=1, resources={"engine": 1}, dashboard_address=None, memory_limit=0,
        silence_logs=50, local_directory=str(home / "dask"), env=env, **options,
    )  # fmt: skip


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
