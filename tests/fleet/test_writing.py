"""A write over workers gives the bytes of one machine, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from surgeon import cli
from surgeon.errors import SurgeonError
from surgeon.fleet import cluster, writing
from surgeon.fleet.errors import FleetError
from surgeon.write import operation


def written(out: Path, *words: object) -> bytes:
    assert cli.run(["quantize", *map(str, words)]) == 0
    return out.read_bytes()


def test_a_write_over_the_fleet_has_the_same_bytes(
    demo_model: Path, demo_imatrix: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_TASK_BYTES", 1 << 20)
    here, there = tmp_path / "a" / "out.gguf", tmp_path / "b" / "out.gguf"
    for out in (here, there):
        out.parent.mkdir()
    options = ("--imatrix", demo_imatrix, "--prune-layers", "9", "--tensor-type", "ffn_up=q5_k")
    alone = written(here, *options, demo_model, here, "Q4_K_M")
    assert written(there, *options, "--scheduler", scheduler, demo_model, there, "Q4_K_M") == alone
    assert [path.name for path in there.parent.iterdir()] == ["out.gguf"]


def test_a_worker_that_dies_loses_nothing(
    demo_model: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two is killed with the first result; a new one takes its place."""
    monkeypatch.setattr(writing, "_TASK_BYTES", 1)
    alone, out = tmp_path / "alone.gguf", tmp_path / "out.gguf"
    wanted = written(alone, demo_model, alone, "Q4_0")
    take, killed = writing.FleetWorkers._take, list[int]()

    def taking(self: writing.FleetWorkers, found: dict[int, tuple[int, int]]) -> None:
        if not killed:
            with Client(scheduler, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)
        take(self, found)

    monkeypatch.setattr(writing.FleetWorkers, "_take", taking)
    assert written(out, "--scheduler", scheduler, demo_model, out, "Q4_0") == wanted
    assert killed


def test_a_result_that_went_with_its_worker_is_waited_for(
    demo_model: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is worked out again on another one, however long that takes: the scheduler still stands."""
    monkeypatch.setattr(writing, "_TASK_BYTES", 1)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.001)
    alone, out = tmp_path / "alone.gguf", tmp_path / "out.gguf"
    wanted = written(alone, demo_model, alone, "Q4_0")
    result, killed = cluster.Fleet._result, list[int]()

    def losing(self: cluster.Fleet, future: Any) -> Any:
        if not killed:
            with Client(scheduler, set_as_default=False) as client:
                workers = client.run(os.getpid)
            (holders,) = self._client.who_has([future]).values()
            killed.append(workers[holders[0]])
            os.kill(killed[0], signal.SIGKILL)
        return result(self, future)

    monkeypatch.setattr(cluster.Fleet, "_result", losing)
    assert written(out, "--scheduler", scheduler, demo_model, out, "Q4_0") == wanted
    assert killed


def test_cancelling_and_a_failure_leave_what_can_be_resumed(
    demo_model: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finished before is on record; the same command, here or there, goes on."""
    monkeypatch.setattr(writing, "_TASK_BYTES", 1)
    monkeypatch.setattr(operation, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(operation, "TICK", 0.01)
    alone, out = tmp_path / "alone.gguf", tmp_path / "out.gguf"
    wanted = written(alone, demo_model, alone, "Q4_0")
    take, taken = writing.FleetWorkers._take, list[int]()

    def failing(self: writing.FleetWorkers, found: dict[int, tuple[int, int]]) -> None:
        taken.extend(found)
        time.sleep(0.03)
        if len(taken) > 60:
            raise FleetError("the scheduler is gone")
        take(self, found)

    monkeypatch.setattr(writing.FleetWorkers, "_take", failing)
    words = ["quantize", "--resume", str(demo_model), str(out), "Q4_0"]
    with pytest.raises(SurgeonError, match=r"the scheduler is gone; .*continue with --resume"):
        cli.run([*words[:1], "--scheduler", scheduler, *words[1:]])
    assert not out.exists()
    assert cli.run(words) == 0
    assert out.read_bytes() == wanted


def test_what_keeps_a_fleet_from_starting_is_one_line(
    demo_model: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1.0)
    words = [str(demo_model), str(tmp_path / "out.gguf"), "Q4_0"]
    with pytest.raises(FleetError, match="no Dask scheduler answers there"):
        cli.run(["quantize", "--scheduler", "tcp://127.0.0.1:1", *words])
    monkeypatch.setattr(cluster, "__version__", "0.0.9")
    with pytest.raises(FleetError, match=r"worker .* has surgeon .*, but this is surgeon 0\.0\.9: install the same"):
        cli.run(["quantize", "--scheduler", scheduler, *words])
    assert not list(tmp_path.iterdir())
