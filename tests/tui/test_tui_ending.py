"""A session that is ended from outside: the plan is kept, a write leaves what it has, the next session goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import toy_llama
from test_tui_terminal import Terminal, needs_tmux
from textual.pilot import Pilot
from tui_helpers import session_of, text_of

from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, load_recipe
from surgeon.resolve.resolve import resolve
from surgeon.terminal import escaping
from surgeon.tui.app import SurgeonApp
from surgeon.tui.autosave import PlanFile, plan_path
from surgeon.tui.config import Config
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.jobs.writing import WriteJob
from surgeon.tui.unfinished import note, note_path, unfinished
from surgeon.write import operation
from surgeon.write.operation import Summary, WriteOptions, write


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_llama(tmp_path / "in.gguf", layers=6)


def app_of(model: Path) -> SurgeonApp:
    """A session that keeps what it does, without compiling kernels ahead."""
    app = SurgeonApp(session_of(model), Config(), persistent=True)
    app.warm_up.want = lambda _: None  # type: ignore[method-assign]
    return app


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow reads, and finished tensors recorded at once."""
    monkeypatch.setattr(operation, "TICK", 0.001)
    monkeypatch.setattr(operation, "CHECKPOINT_SECONDS", 0.0)
    preadv, pause = os.preadv, threading.Event()

    def slowly(*args: Any) -> int:
        pause.wait(0.02)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", slowly)


async def ended_while_writing(model: Path, out: Path) -> int | None:
    """A session that SIGTERM ends as soon as a tensor of its write is on the disk; its exit code."""
    app = app_of(model)
    async with app.run_test() as pilot:
        await pilot.pause()
        job = WriteJob(app.session.resolution, None, out, WriteOptions(1))
        assert app.start(job)
        await until(pilot, lambda: job.resume_log.exists() and b"finished" in job.resume_log.read_bytes())
        app.end(signal.SIGTERM)
        await until(pilot, lambda: not job.running)
        await pilot.pause()
    return app.return_value


async def until(pilot: Pilot[int], condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.usefixtures("slow")
async def test_a_write_is_resumed_by_the_next_session(model: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    written = [*write(resolve(session_of(model).model, Plan()), None, whole, WriteOptions(1), threading.Event())]
    assert isinstance(written[-1], Summary)
    assert await ended_while_writing(model, out) == 128 + signal.SIGTERM
    assert not out.exists()
    assert (tmp_path / ".out.gguf.surgeon-part").exists()
    assert unfinished(model) is not None

    app = app_of(model)
    async with app.run_test() as pilot:
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert isinstance(app.screen, Confirm)
        assert f"while {out} was being written. Resume it?" in app.screen.question
        await pilot.press("y")
        job = app.job
        assert job is not None
        await until(pilot, lambda: not job.running)
        assert job.summary is not None, job.failure
        assert job.summary.resumed > 0
    assert out.read_bytes() == whole.read_bytes()
    assert not note_path(model).exists()
    assert unfinished(model) is None


@pytest.mark.usefixtures("slow")
async def test_a_write_that_is_not_resumed_is_not_offered_again(model: Path, tmp_path: Path) -> None:
    await ended_while_writing(model, tmp_path / "out.gguf")
    for asked in (True, False):
        app = app_of(model)
        async with app.run_test() as pilot:
            await pilot.pause(0.2)
            assert isinstance(app.screen, Confirm) is asked
            if asked:
                await pilot.press("n")
                await pilot.pause()
                assert "not resumed" in text_of(app, "bar")
    assert (tmp_path / ".out.gguf.surgeon-part").exists()


def test_a_note_of_anything_else_is_no_note(model: Path) -> None:
    path = note_path(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    nul = '{"out": "o", "overwrite": 0, "recipe": "", "resume_log": "\\u0000"}'
    for text in ("", "{", "[]", '{"out": 1}', "[" * 5000, nul):
        path.write_text(text)
        assert unfinished(model) is None
    job = WriteJob(session_of(model).resolution, None, model.with_name("o.gguf"), WriteOptions())
    assert note(job) == ""
    assert unfinished(model) is None  # nothing lies there that could be resumed


async def test_the_plan_is_kept_at_once(model: Path) -> None:
    PlanFile(model, 1, -1).keep(Recipe(Plan("Q8_0")))
    app = app_of(model)
    async with app.run_test() as pilot:
        await pilot.pause()
        await pilot.press("p")
        app.end(signal.SIGHUP)
        assert load_recipe(plan_path(model)).plan.pruned == {0}
        await pilot.pause()
    assert app.return_value == 128 + signal.SIGHUP


@needs_tmux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    shutil.copy(model, tmp_path / "m.gguf")
    python = f"cd {tmp_path}; sh -c 'echo $$ > pid; exec {sys.executable} -m surgeon m.gguf'"
    terminal = Terminal(tmp_path, (80, 24), f"{python}; echo CODE $?; stty -a; sleep 60")
    try:
        terminal.wait("w write")
        terminal.keys("p")
        terminal.wait("pruned")
        os.kill(int((tmp_path / "pid").read_text()), number)
        shown = terminal.wait(r"CODE \d+[\s\S]*icrnl")
        assert f"CODE {128 + number}" in shown
        assert " icanon" in shown
        assert " echo " in shown
        assert terminal.tmux("display", "-p", "#{alternate_on}#{mouse_any_flag}").strip() == "00"
    finally:
        terminal.close()
    (plan,) = (tmp_path / "state" / "surgeon" / "plans").glob("m-*.toml")
    assert load_recipe(plan).plan.pruned == {0}


def test_the_traceback_of_a_fault_is_plain_text(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    app = app_of(model)
    with escaping():
        try:
            raise ValueError("file \x1b]0;name\x07")
        except ValueError:
            app._fatal_error()
        app._print_error_renderables()
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert "\x1b" not in text
    assert r"\x1b[" not in text, "no codes of colours spelt out"
