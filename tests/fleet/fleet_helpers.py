"""Clusters of worker processes."""

from __future__ import annotations

import os
from pathlib import Path

from distributed import LocalCluster

ROOT = Path(__file__).parents[2]


def workers(count: int, home: Path, **options: object) -> LocalCluster:
    """A scheduler in this process, and workers whose state and caches lie in `home`."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    env = {"PYTHONPATH": path, "SURGEON_THREADS": "1"}
    env |= {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("STATE", "CONFIG")}
    return LocalCluster(
        n_workers=count, threads_per_worker=1, resources={"engine": 1}, dashboard_address=None, memory_limit=0,
        silence_logs=50, local_directory=str(home / "dask"), env=env, **options,
    )  # fmt: skip
