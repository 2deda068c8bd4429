"""The queue of the screen over real workers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import TEXT
from fleet_helpers import ROOT, children_of, long_text
from textual.pilot import Pilot

from surgeon import cli
from surgeon.commands import imatrix, perplexity, prune_scan
from surgeon.session.queue import DONE, FAILED, WAITING, Entry
from surgeon.tui.config import Config
from surgeon.tui.dialogs.base import Choices

sys.path.insert(0, str(ROOT / "tests" / "tui"))
from tui_helpers import opened, session_of, text_of

SMALL = {"text": str(TEXT), "chunks": "4", "context": "64"}


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "novels-12M-F16.gguf"
    copy.write_bytes(demo_model.read_bytes())
    return copy


async def until(pilot: Pilot[int], condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)


async def test_the_queue_over_workers_does_what_commands_do(
    model: Path, scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = session_of(model)
    out, written = tmp_path / "there.gguf", tmp_path / "written.gguf"
    seen, listed, jobs = set[str](), set[str](), dict[int, Any]()
    async with opened(session, (100, 30), Config(threads=1, scheduler=scheduler)) as (app, pilot):
        app.main.enqueue(
            Entry("scan", "scan", {**SMALL, "count": "1", "how": ""}),
            Entry("collect", "imatrix", {**SMALL, "out": str(out), "how": ""}),
            Entry("evaluate", "unchanged", {**SMALL, "what": "ppl", "tasks": "", "n_tasks": "", "file": str(model)}),
            Entry("write", "written", {"out": str(written), "replace": ""}, 'format = 1\ntype = "Q8_0"\n'),
        )

        await pilot.press("L")
        lines = app.screen.query_one("#queue", Choices)

        def ended() -> bool:
            seen.add(text_of(app, "header"))
            listed.add(str(lines.get_option_at_index(0).prompt))
            jobs.update({id(job): job for job in app.running_jobs})
            return not app.main.queue.waiting and not app.running_jobs

        await until(pilot, ended)
        assert [(one.kind, one.note) for one in app.main.queue.entries if one.state != DONE] == []
        (trial, *_) = [trial for trial in app.main.journal.trials() if trial.figure("ppl") is not None]
    layers = session.model.block_count
    assert any(f" · 2 workers · {done}/{layers} tasks" in line for line in seen for done in range(1, layers))
    assert any(f" 2 workers · {done}/{layers} tasks · " in line for line in listed for done in range(1, layers))
    assert [job.workers.standing for job in jobs.values()] == [
        f"2 workers · {tasks}/{tasks} tasks" for tasks in (layers, 1, 1, 1)
    ]

    window = ["-m", str(model), "-f", str(TEXT), "-c", "64", "--chunks", "4", "-t", "1"]
    capsys.readouterr()
    assert prune_scan.main([*window, "--json", "--restart"]) == 0
    alone = {one["layers"][0]: one["mean_kld"] for one in json.loads(capsys.readouterr().out)["damages"]}
    assert session.damages == alone
    assert perplexity.main([*window, "--json"]) == 0
    assert trial.figure("ppl") == json.loads(capsys.readouterr().out)["ppl"]
    assert imatrix.main([*window, "--block-chunks", "32", "-o", str(tmp_path / "here.gguf")]) == 0
    assert out.read_bytes() == (tmp_path / "here.gguf").read_bytes()
    assert cli.run(["quantize", str(model), str(tmp_path / "here-Q8_0.gguf"), "Q8_0"]) == 0
    assert written.read_bytes() == (tmp_path / "here-Q8_0.gguf").read_bytes()


async def test_stopping_stops_the_workers_and_the_entry_waits(model: Path, scheduler: str, tmp_path: Path) -> None:
    session = session_of(model)
    answers = {"text": str(long_text(tmp_path)), "chunks": "400", "context": "64", "count": "", "how": ""}
    async with opened(session, (100, 30), Config(threads=1, scheduler=scheduler)) as (app, pilot):
        app.main.enqueue(Entry("scan", "scan", answers))
        await until(pilot, lambda: children_of(scheduler))
        (job,) = app.running_jobs
        job.stop()
        await until(pilot, lambda: not app.running_jobs)
        assert [one.state for one in app.main.queue.entries] == [WAITING]
        assert app.main.queue.paused
        await until(pilot, lambda: not children_of(scheduler))


async def test_a_scheduler_that_does_not_answer_fails_the_entry(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.fleet.cluster._CONNECT_SECONDS", 1.0)
    async with opened(session_of(model), (100, 30), Config(scheduler="tcp://127.0.0.1:1")) as (app, pilot):
        app.main.enqueue(Entry("scan", "scan", {**SMALL, "count": "", "how": ""}))
        await until(pilot, lambda: not app.running_jobs and not app.main.queue.waiting)
        (entry,) = app.main.queue.entries
        assert entry.state == FAILED
        assert "no Dask scheduler answers there" in entry.note
