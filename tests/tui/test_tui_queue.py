"""The queue on the bench: filled from every form, kept over the program's end, and worked off by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tui_keys import Screen
from textual.pilot import Pilot
from tui_helpers import opened, session_of

from surgeon.session.queue import DONE, FAILED, WAITING, Entry, Queue
from surgeon.session.session import Session
from surgeon.trials.journal import Journal
from surgeon.tui.answers import remember
from surgeon.tui.app import SurgeonApp
from surgeon.tui.autosave import plan_path
from surgeon.tui.dialogs.bench.page import BenchPage
from surgeon.tui.dialogs.bench.plot import plot_lines
from surgeon.tui.dialogs.bench.queue_lines import queue_head
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.forms.form import Form, Switches
from surgeon.tui.dialogs.running.measuring import MeasureDialog
from surgeon.tui.drawing.spans import plain

TEXT = Path(__file__).parents[1] / "data" / "lighthouse.txt"
SMALL = {"text": str(TEXT), "chunks": "1", "context": "64"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.folders.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def session(model_copy: Path) -> Session:
    return session_of(model_copy)


async def until(pilot: Pilot[int], condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for what a thread does; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)


async def fill(app: SurgeonApp, pilot: Pilot[int], key: str, **texts: str) -> None:
    """Fill the form that is open and press `key`."""
    form = app.screen
    assert isinstance(form, Form)
    for name, text in texts.items():
        widget = form.query_one(f"#{name}")
        if isinstance(widget, Switches):
            widget.chosen = set(text.split())
        else:
            widget.value = text  # type: ignore[attr-defined]
    await pilot.pause()
    await pilot.press(key)


async def bench(app: SurgeonApp, pilot: Pilot[int]) -> BenchPage:
    await pilot.press("L")
    assert isinstance(app.screen, BenchPage)
    return app.screen


def states(app: SurgeonApp) -> list[tuple[str, str]]:
    return [(entry.kind, entry.state) for entry in app.main.queue.entries]


def test_an_empty_queue_says_so_also_when_paused() -> None:
    queue = Queue()
    queue.pause(True)
    assert plain(queue_head(queue)) == "queue  empty · paused, P resumes"


async def test_a_matrix_is_written_measured_and_put_on_a_card(session: Session, model_copy: Path) -> None:
    async with opened(session, (140, 40)) as (app, pilot):
        page = await bench(app, pilot)
        await pilot.press("a")
        form = app.screen
        assert isinstance(form, Form)
        assert form.answers["types"] == "Q4_K_M Q5_K_M Q6_K Q8_0"
        await fill(app, pilot, "enter", types="f16 bf16", what="write kld", **SMALL)
        assert app.screen is page, "the bench stays"
        await until(pilot, lambda: [state for _, state in states(app)] == [DONE] * 5)
        assert [kind for kind, _ in states(app)] == ["write", "evaluate", "write", "evaluate", "card"]
        assert model_copy.with_name("novels-12M-BF16.gguf").is_file()
        card = model_copy.with_name("novels-12M-F16.card.md").read_text()
        rows = [line.split(" | ")[0] for line in card.splitlines() if line.startswith("| novels")]
        assert rows[:3] == ["| novels-12M-F16 (unchanged)", "| novels-12M-F16-rewritten", "| novels-12M-BF16"]
        assert "novels-12M-BF16" in {trial.label for trial in page.trials}, "the page has the new trials"
        # The same again: files that are there are not replaced, and the card gets another name.
        await pilot.press("tab", "D")
        assert states(app) == []
        await pilot.press("a", "enter")
        await until(pilot, lambda: states(app) and not app.main.queue.waiting and not app.running_jobs)
        assert [state for _, state in states(app)] == [FAILED, DONE, FAILED, DONE, DONE]
        assert "already exists" in app.main.queue.entries[0].note
        assert model_copy.with_name("novels-12M-F16.card-2.md").read_text() == card


async def test_a_matrix_begins_with_the_text_that_a_plan_was_measured_on(session: Session, model_copy: Path) -> None:
    remember(model_copy, "evaluate", {**SMALL, "what": "ppl speed", "tasks": "a.bin", "n_tasks": "7"})
    async with opened(session) as (app, pilot):
        await bench(app, pilot)
        await pilot.press("a")
        form = app.screen
        assert isinstance(form, Form)
        assert [form.answers[key] for key in ("text", "chunks", "context", "tasks", "n_tasks")] == [
            SMALL["text"], SMALL["chunks"], SMALL["context"], "a.bin", "7",
        ]  # fmt: skip
        assert form.answers["what"] == "write ppl kld speed", "KL divergence besides, which cards are about"


async def test_a_file_of_somebody_else_is_a_row(session: Session, model_copy: Path) -> None:
    reference = model_copy.with_name("theirs.gguf")
    reference.write_bytes(model_copy.read_bytes())
    async with opened(session) as (app, pilot):
        page = await bench(app, pilot)
        await pilot.press("r", *"theirs.gguf".replace(".", " ").split()[0], "full_stop", *"gguf", "enter")
        assert isinstance(app.screen, Form)
        assert "theirs.gguf" in app.screen.answer
        await fill(app, pilot, "enter", what="ppl", **SMALL)
        await until(pilot, lambda: states(app) == [("evaluate", DONE)])
        assert page.trial is not None
        assert page.trial.figure("ppl") is not None


async def test_forms_can_wait_and_entries_be_moved_and_removed(session: Session) -> None:
    async with opened(session) as (app, pilot):
        page = await bench(app, pilot)
        await pilot.press("P", "escape")
        await pilot.press("e")
        await fill(app, pilot, "ctrl+l", what="speed", **SMALL)
        await pilot.press("I")
        await fill(app, pilot, "ctrl+l", **SMALL)
        await pilot.press("S")
        await fill(app, pilot, "ctrl+l", **SMALL)
        await pilot.press("F")
        await fill(app, pilot, "ctrl+l", **SMALL)
        await pilot.press("w", "ctrl+l")
        kinds = ["evaluate", "collect", "scan", "sensitivities", "write"]
        assert states(app) == [(kind, WAITING) for kind in kinds]
        assert app.main.queue.entries[-1].title == "novels-12M-copy"
        assert not app.running_jobs, "it is paused"
        page = await bench(app, pilot)
        await pilot.press("tab", "G", "K", "K")
        assert [kind for kind, _ in states(app)] == ["evaluate", "collect", "write", "scan", "sensitivities"]
        await pilot.press("g", "x")
        assert [kind for kind, _ in states(app)] == ["collect", "write", "scan", "sensitivities"]
        await pilot.press("G", "enter")
        assert states(app)[0] == ("sensitivities", WAITING), "Enter makes it the next"
        assert app.screen is page


async def test_stopping_keeps_the_entry_and_pauses(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("e")
        await fill(app, pilot, "ctrl+l", what="speed", **SMALL)
        await until(pilot, lambda: app.running_jobs)
        await bench(app, pilot)
        await pilot.press("tab", "enter")
        assert isinstance(app.screen, MeasureDialog), "what runs is shown"
        await pilot.press("x")
        assert isinstance(app.screen, Confirm)
        await pilot.press("y")
        await until(pilot, lambda: not app.running_jobs and states(app) == [("evaluate", WAITING)])
        assert app.main.queue.paused


async def test_what_fails_is_noted_and_the_next_begins(session: Session, model_copy: Path) -> None:
    async with opened(session) as (app, pilot):
        app.main.enqueue(
            Entry("evaluate", "gone", {"file": "/gone.gguf", "what": "speed"}),
            Entry("write", "copy", {"out": str(model_copy.with_name("copy.gguf"))}, recipe="format = 1\n"),
        )
        await until(pilot, lambda: [state for _, state in states(app)] == [FAILED, DONE])
        assert model_copy.with_name("copy.gguf").is_file()
        assert [trial.label for trial in Journal.of_model(model_copy).trials()] == ["copy"]


async def test_an_entry_of_another_version_is_noted_and_the_next_begins(session: Session) -> None:
    async with opened(session) as (app, pilot):
        app.main.queue.add(Entry("card", "old", {"recipes": "[", "card": "card.md"}), Entry("collect", "odd"))
        app.main.begin_next()
        await pilot.pause()
        assert [state for _, state in states(app)] == [FAILED, FAILED]
        assert app.main.queue.entries[1].note == "cannot be begun (KeyError: 'out'); queue it anew"


async def test_a_trial_beside_the_plan_on_the_map(session: Session, model_copy: Path) -> None:
    async with opened(session, (120, 30)) as (app, pilot):
        session.set_file_type("F16")
        await pilot.press("w", "enter")
        await until(pilot, lambda: app.job is not None and app.job.summary is not None)
        await pilot.press("enter")
        session.set_file_type("Q8_0")
        await bench(app, pilot)
        await pilot.press("M")
        await pilot.pause()
        assert "novels-12M-F16-rewritten" in next(iter(app.main.bases())), "the newest comes first"


def test_the_plot_marks_plan_and_selection() -> None:
    from test_tui_bench import TRIALS

    lines = [plain(line) for line in plot_lines(TRIALS, 80, 20, now=(7_500_000, 0.01), here=TRIALS[0].id)]
    assert any("[b]" in line for line in lines)
    assert any("+" in line for line in lines[1:12])
    assert any("▲" in line for line in lines)
    assert any(line.startswith("+ the plan now: 7.50 MB, KLD 0.010000 predicted") for line in lines)


def test_a_queue_survives_the_program(model_copy: Path) -> None:
    screen = Screen(model_copy)
    screen.write("LP\x1bw\x0cq")
    assert screen.end() == 0
    path = plan_path(model_copy).with_suffix(".queue.json")
    assert [entry.kind for entry in Queue.kept(path).waiting] == ["write"]
    screen = Screen(model_copy)
    screen.until(lambda: b"left from the last session" in screen.output)
    screen.write("LP")
    screen.until(model_copy.with_name("novels-12M-copy.gguf").exists)
    screen.until(lambda: not path.exists() or not Queue.kept(path).waiting)
    screen.write("\x1bq")
    assert screen.end() == 0
