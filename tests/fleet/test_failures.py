"""What goes wrong on the way: cancelled, killed, gone, other files. One line each, nothing lost, no child left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from engine_helpers import ONE_THREAD, TEXT
from fleet_helpers import children_of, long_text, workers

from surgeon.commands import doctor, prune_scan
from surgeon.engine.protocol import LayerDamage, Message, PruneScanJob
from surgeon.errors import Cancelled
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.errors import FleetError
from surgeon.fleet.scans import scanned
from surgeon.measure.scans.prune_scan import PruneScan

LONG = 400  # chunks: more than any of these tests waits for


def job(model: Path, layers: int, chunks: int = 4) -> PruneScanJob:
    return PruneScanJob(str(model), str(TEXT), [[layer] for layer in range(layers)], n_ctx=64, n_chunks=chunks)


def comes_true(seconds: float, condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_cancel_stops_every_worker_at_once(demo_model: Path, scheduler: str, tmp_path: Path) -> None:
    wanted = job(demo_model, 4, LONG)
    wanted = PruneScanJob(**{**vars(wanted), "text": str(long_text(tmp_path))})
    stop, ended = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            with Fleet(scheduler, ONE_THREAD, stop) as fleet:
                list(scanned(fleet, wanted))
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert comes_true(60, lambda: bool(children_of(scheduler)))
    stop.set()
    thread.join(30)
    assert ended
    assert comes_true(30, lambda: not children_of(scheduler))


def test_the_end_of_a_run_ends_the_children_it_kept(demo_model: Path, scheduler: str) -> None:
    with Fleet(scheduler, ONE_THREAD) as fleet:
        list(scanned(fleet, job(demo_model, 2)))
        assert children_of(scheduler)
    assert comes_true(10, lambda: not children_of(scheduler))  # without a word they stay for twenty seconds


def test_a_worker_killed_at_work_loses_nothing_and_counts_nothing_twice(demo_model: Path, scheduler: str) -> None:
    def damages(kill: bool) -> list[LayerDamage]:
        found: list[LayerDamage] = []
        with Fleet(scheduler, ONE_THREAD) as fleet:
            for message in scanned(fleet, job(demo_model, 6)):
                if isinstance(message, LayerDamage):
                    found.append(message)
                    if kill and len(found) == 1:
                        with Client(scheduler, set_as_default=False) as client:
                            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        return sorted(found, key=lambda one: one.layers)

    assert damages(kill=True) == damages(kill=False)


def test_a_scheduler_that_goes_is_one_line_and_the_same_command_goes_on(
    demo_model: Path, scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, identity = tmp_path / "state.json", "the same"
    with workers(1, tmp_path / "others") as cluster:

        def until_it_goes(fleet: Fleet) -> Callable[[PruneScanJob], Iterator[Message]]:
            def messages(wanted: PruneScanJob) -> Iterator[Message]:
                for message in scanned(fleet, wanted):
                    yield message
                    if isinstance(message, LayerDamage):
                        cluster.close()

            return messages

        scan = PruneScan(ONE_THREAD, job(demo_model, 5), state, identity)
        with Fleet(str(cluster.scheduler_address), ONE_THREAD) as fleet:
            scan.elsewhere = until_it_goes(fleet)
            with pytest.raises(FleetError, match=r"the scheduler is gone; what was finished is kept"):
                list(scan.messages())
    assert "Traceback" not in capsys.readouterr().err
    again = PruneScan(ONE_THREAD, job(demo_model, 5), state, identity)
    again.load()
    kept = set(again.damages)
    assert 1 <= len(kept) < 5
    with Fleet(scheduler, ONE_THREAD) as fleet:
        again.elsewhere = lambda wanted: scanned(fleet, wanted)
        asked = [message for message in again.messages() if isinstance(message, LayerDamage)]
    assert {tuple(one.layers) for one in asked} == set(map(tuple, again.job.layer_sets)) - kept


def test_another_file_on_a_worker_is_refused_with_its_name(
    demo_model: Path, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this machine believes of a file, and what the workers find, differ."""
    from surgeon.fleet import files

    text = tmp_path / "text.txt"
    shutil.copy(TEXT, text)
    shared = files.shared_files
    scheduler = str(cluster.scheduler_address)

    def believed(paths: object) -> tuple[files.SharedFile, ...]:
        found = shared(paths)  # type: ignore[arg-type]
        return (*found[:-1], files.SharedFile(found[-1].path, found[-1].size + 1, found[-1].identity))

    monkeypatch.setattr("surgeon.fleet.cluster.shared_files", believed)
    with Fleet(scheduler, ONE_THREAD) as fleet:
        with pytest.raises(FleetError, match=r"worker .*text\.txt: is another file there \([0-9,]+ bytes there, "):
            list(fleet.each(len, {0: ("",)}, (demo_model, text)))
        monkeypatch.setattr("surgeon.fleet.cluster.shared_files", shared)
        missing = files.SharedFile(str(tmp_path / "gone.txt"), 1, "")
        monkeypatch.setattr("surgeon.fleet.cluster.shared_files", lambda _: (missing,))
        with pytest.raises(
            FleetError, match=r"worker .*gone\.txt: No such file or directory; files must lie under the"
        ):
            list(fleet.each(len, {0: ("",)}))


def test_another_llama_cpp_on_a_worker_is_refused_with_its_name(
    demo_model: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = r"worker .* on .* has .*llama\.cpp.*, but this is b1: install the same llama\.cpp on every machine"
    with Fleet(scheduler, ONE_THREAD) as fleet:
        fleet.build = "b1"  # as for a worker that comes later
        with pytest.raises(FleetError, match=refusal):
            list(scanned(fleet, job(demo_model, 1)))
    monkeypatch.setattr("surgeon.fleet.cluster.build_of", lambda _: "b1")
    with pytest.raises(FleetError, match=refusal):
        prune_scan.main(["-m", str(demo_model), "-f", str(TEXT), "--scheduler", scheduler])


def test_no_workers_and_workers_without_the_resource(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.fleet.cluster._CONNECT_SECONDS", 1.0)
    command = ["-m", str(demo_model), "-f", str(TEXT), "--scheduler"]
    with (
        LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty,
        pytest.raises(FleetError, match="no worker is connected; start one: dask worker"),
    ):
        prune_scan.main([*command, str(empty.scheduler_address)])
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None, silence_logs=50) as plain,
        pytest.raises(FleetError, match="no worker offers engine=1"),
    ):
        prune_scan.main([*command, str(plain.scheduler_address)])


def test_a_server_that_is_no_scheduler_and_says_nothing_is_one_line(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.fleet.cluster._CONNECT_SECONDS", 0.25)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        words = ["-m", str(demo_model), "-f", str(TEXT), "--scheduler", f"tcp://127.0.0.1:{mute.getsockname()[1]}"]
        with pytest.raises(FleetError, match="no Dask scheduler answers"):
            prune_scan.main(words)


def test_without_dask_the_message_says_how_to_get_it(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(FleetError, match=r"no Dask here: pip install 'gguf-surgeon\[fleet\]'"):
        prune_scan.main(["-m", str(demo_model), "-f", str(TEXT), "--scheduler", "tcp://127.0.0.1:1"])


def test_doctor_looks_at_the_workers(
    scheduler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.main(["--scheduler", scheduler, "--json"]) == 0
    fleet = json.loads(capsys.readouterr().out)["fleet"]
    assert fleet["problem"] == ""
    assert len(fleet["workers"]) == 2
    assert all("surgeon " in worker and "llama.cpp" in worker for worker in fleet["workers"])
    monkeypatch.setattr("surgeon.fleet.cluster._CONNECT_SECONDS", 1.0)
    assert doctor.main(["--scheduler", "tcp://127.0.0.1:1"]) == 1
    assert "no Dask scheduler answers there" in capsys.readouterr().out
