"""Clusters of worker processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from distributed import Client, LocalCluster

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "tests" / "data" / "lighthouse.txt"


def workers(count: int, home: Path, **options: object) -> LocalCluster:
    """A scheduler in this process, and workers whose state and caches lie in `home`."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    env = {"PYTHONPATH": path, "SURGEON_THREADS": "1"}
    env |= {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("STATE", "CONFIG")}
    return LocalCluster(
        n_workers=count, threads_per_worker=1, resources={"engine": 1}, dashboard_address=None, memory_limit=0,
        silence_logs=50, local_directory=str(home / "dask"), env=env, **options,
    )  # fmt: skip


def long_text(folder: Path) -> Path:
    path = folder / "long.txt"
    path.write_text(TEXT.read_text() * 40)
    return path


def children_of(scheduler: str) -> set[int]:
    """The engine's processes that the workers have started, and which run."""
    with Client(scheduler, set_as_default=False) as client:
        parents = set(client.run(os.getpid).values())
    rows = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    fields = [row.split(None, 2) for row in rows[1:]]
    return {int(pid) for pid, parent, words in fields if int(parent) in parents and "surgeon.engine.child" in words}
