"""Collecting, measuring and scanning in the running screen, with the engine itself on the bundled model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.drivers.linux_driver import LinuxDriver
from textual.pilot import Pilot
from textual.widgets import Input
from tui_helpers import opened, session_of, text_of, typed

from surgeon import figures
from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.errors import SurgeonError
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.progress import Standing
from surgeon.session.layer_figures import last_damages
from surgeon.session.metrics import METRICS
from surgeon.session.session import Session
from surgeon.trials.journal import Journal, Measured, new_trial
from surgeon.tui import answers as kept_answers
from surgeon.tui.app import LONG_JOB, SurgeonApp
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.forms.form import Form, Switches
from surgeon.tui.dialogs.forms.measure_forms import number_of, paths_of, wanted_of
from surgeon.tui.dialogs.running.measuring import Log, MeasureDialog, standing_lines
from surgeon.tui.drawing.spans import plain
from surgeon.tui.jobs.collecting import CollectJob
from surgeon.tui.jobs.evaluating import EvaluateJob
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.scanning import ScanJob
from surgeon.tui.terminal import Beside

TEXT = Path(__file__).parents[1] / "data" / "lighthouse.txt"
SMALL = {"text": str(TEXT), "chunks": "2", "context": "64"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bases of this test; the kernels stay where they are."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("surgeon.folders.cache_folder", lambda: folder)
    return folder


@pytest.fixture
def session(model_copy: Path, demo_imatrix: Path) -> Session:
    return session_of(model_copy, demo_imatrix)


async def until(pilot: Pilot[int], condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for what a thread does; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)


async def answer(app: SurgeonApp, pilot: Pilot[int], **texts: str) -> None:
    """Fill the form that is open and press Enter."""
    form = app.screen
    assert isinstance(form, Form)
    for key, text in texts.items():
        widget = form.query_one(f"#{key}")
        if isinstance(widget, Switches):
            widget.chosen = set(text.split())
        else:
            widget.value = text  # type: ignore[attr-defined]
    await pilot.pause()
    await pilot.press("enter")


async def ran(app: SurgeonApp, pilot: Pilot[int]) -> MeasureJob:
    """Wait for the end of the run that was begun."""
    job = app.main.measure_job
    assert job is not None
    await until(pilot, lambda: not job.running)
    await pilot.pause()
    return job


def journal_of(session: Session) -> Journal:
    return Journal.of_model(session.model.file.path)


# --- measuring the plan


async def test_measuring_a_plan(session: Session, cache: Path) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        session.set_file_type("F16")
        session.toggle_prune([9])
        await pilot.press("e")
        form = app.screen
        assert isinstance(form, Form)
        assert "in a temporary file" in form.answer
        await answer(app, pilot, what="kld", **SMALL)
        assert isinstance(app.screen, MeasureDialog)
        job = await ran(app, pilot)
        assert job.failure == ""
        assert "KLD 0.0" in app.screen.shown
        assert "lighthouse.txt, 2 chunks of 64" in app.screen.shown
        await pilot.press("l")
        assert isinstance(app.screen, Log)
        assert "llama" in app.screen.shown
        await pilot.press("escape", "enter")
        assert app.screen is app.main
        trials = journal_of(session).trials()
        assert [trial.label for trial in trials] == ["novels-12M-F16 (unchanged)", "novels-12M-pruned-9-F16"]
        assert trials[1].figure("mean_kld") is not None
        assert [path.name for path in cache.iterdir()] == ["bases"]

        # The answers are there the next time, also for another session.
        await pilot.press("e")
        form = app.screen
        assert isinstance(form, Form)
        assert (form.answers["text"], form.answers["chunks"]) == (str(TEXT), "2")
        assert form.answers["what"] == "kld"


async def test_nothing_moves_as_the_focus_goes_along_a_form(session: Session, cache: Path) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("e")
        form = app.screen
        assert isinstance(form, Form)
        await pilot.pause()
        heights = set()
        for _ in form.fields:
            await pilot.press("tab")
            await pilot.pause()
            heights.add(form.query_one("#answer").size.height)
        assert any(field.options and not field.help for field in form.fields)
        assert len(heights) == 1


async def test_x_stops_within_a_blink(session: Session, cache: Path) -> None:
    async with opened(session) as (app, pilot):
        session.set_file_type("F16")
        await pilot.press("e")
        await answer(app, pilot, what="kld", **SMALL)
        job = app.main.measure_job
        assert isinstance(job, EvaluateJob)
        await until(pilot, lambda: job.engine_run() is not None and job.engine_run().process is not None)  # type: ignore[union-attr]
        begin = time.monotonic()
        await pilot.press("x", "y", "escape")
        await ran(app, pilot)
        assert time.monotonic() - begin < 2.0
        assert job.failure.startswith("stopped")
        run = job.engine_run()
        assert run is not None
        assert run.process is not None
        assert run.process.poll() is not None, "the child is gone"
        assert app.screen is app.main
        for path in cache.rglob("*"):  # a base that was finished by then stays, and nothing that is half done
            if path.is_file():
                assert BaseFile(str(path)).n_chunks == 2
        assert app.main.measure_job is job


async def test_a_killed_child_is_one_line_and_the_screen_lives(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("e")
        await answer(app, pilot, what="speed", **SMALL)
        job = app.main.measure_job
        assert job is not None
        await until(pilot, lambda: job.engine_run() is not None and job.engine_run().process is not None)  # type: ignore[union-attr]
        await pilot.press("b")
        assert app.screen is app.main
        os.kill(job.engine_run().process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        await ran(app, pilot)
        await until(pilot, lambda: isinstance(app.screen, MeasureDialog))
        assert "SIGKILL" in app.screen.shown  # type: ignore[attr-defined]
        assert "\n" not in job.failure
        await pilot.press("enter", "j")
        assert app.main.row is not None
        assert app.main.row.key == "layer 1"


async def test_a_text_that_is_too_short(session: Session, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A lamp.\n")
    async with opened(session) as (app, pilot):
        await pilot.press("e")
        await answer(app, pilot, what="ppl", text=str(short), chunks="2", context="64")
        job = await ran(app, pilot)
        assert "take a longer text" in job.failure
        assert journal_of(session).trials() == []


async def test_forms_refuse_what_cannot_be(session: Session, tmp_path: Path) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("e")
        form = app.screen
        assert isinstance(form, Form)
        for texts, said in (
            ({"what": ""}, "nothing to measure"),
            ({"what": "kld", "text": str(tmp_path / "none.txt")}, "no such file"),
            ({"what": "kld", "text": str(TEXT), "chunks": "many"}, "must be a whole number"),
            ({"what": "tasks", "tasks": "", "chunks": "2"}, "name a file"),
        ):
            await answer(app, pilot, **texts)
            assert app.screen is form
            assert said in form.answer, texts
        await pilot.press("escape")
        assert app.main.measure_job is None


async def test_switches_by_keys(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("e")
        form = app.screen
        assert isinstance(form, Form)
        await pilot.press("up", "space", "right", "space", "right", "right", "space")
        assert form.answers["what"] == "ppl speed"
        await pilot.press("down")
        assert form.focused is not None
        assert form.focused.id == "text"


async def test_without_the_engine_a_line_says_how_to_get_it(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.engine.libraries._package_folder", lambda package: None)
    monkeypatch.delenv("LLAMA_CPP_LIB_DIR", raising=False)
    async with opened(session, (130, 30)) as (app, pilot):
        for key in "eIS":
            app.main.unsay()
            await pilot.press(key)
            assert app.screen is app.main
            assert "gguf-surgeon[engine]" in app.main.message
        await pilot.press("p", "L")
        assert session.plan.pruned == {0}
        assert app.screen is not app.main, "the journal needs no engine"


async def test_one_run_at_a_time_and_quitting_asks(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("e")
        await answer(app, pilot, what="speed", **SMALL)
        job = app.main.measure_job
        assert job is not None
        await pilot.press("b", "e")
        assert isinstance(app.screen, Form)
        assert "Enter queue" in app.screen.keys
        await answer(app, pilot, what="kld", **SMALL)
        assert app.main.measure_job is job, "no other is begun"
        assert [entry.kind for entry in app.main.queue.waiting] == ["evaluate"]
        await pilot.press("q")
        assert isinstance(app.screen, Confirm)
        await pilot.press("n")
        assert job.running
        await pilot.press("q", "y")
        await until(pilot, lambda: app.return_code == 0)
        assert not job.running


# --- collecting


async def test_collecting_loads_what_was_collected(model_copy: Path) -> None:
    session = session_of(model_copy)
    out = model_copy.with_name("mine.gguf")
    async with opened(session, (170, 40)) as (app, pilot):
        assert session.measurements.tensors == {}
        await pilot.press("I")
        await answer(app, pilot, out=str(out), text=str(TEXT), chunks="3", context="64")
        job = await ran(app, pilot)
        assert isinstance(job, CollectJob)
        assert job.failure == ""
        assert session.imatrix is not None
        assert session.imatrix.path == out
        assert load_imatrix(out).chunk_count == 3
        assert not job.collection.partial.exists()
        assert len(session.measurements.tensors) == 84
        assert set(session.measurements.of_layers["bi"]) == set(range(12))
        await pilot.press("enter")
        assert "BI" in text_of(app, "heads")
        assert "BI" in text_of(app, "detail")
        await pilot.press("u")
        assert session.imatrix is None
        assert session.measurements.tensors == {}
        assert "BI" not in text_of(app, "heads")


async def test_the_tree_grows_and_a_stopped_collection_goes_on(
    model_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.tui.jobs.collecting.GROWTH_SECONDS", 0.0)
    session = session_of(model_copy)
    out, text = model_copy.with_name("mine.gguf"), model_copy.with_name("long.txt")
    text.write_text(4 * TEXT.read_text())  # so that it does not end while a busy machine brings the keys
    async with opened(session) as (app, pilot):
        await pilot.press("I")
        # Chunks longer than a batch go one by one, so that there is a state in between.
        monkeypatch.setattr("surgeon.tui.dialogs.forms.measure_forms.SAVE_EVERY", 1)
        monkeypatch.setattr("surgeon.tui.dialogs.forms.measure_forms.BATCH", 32)
        await answer(app, pilot, out=str(out), text=str(text), chunks="96", context="32")
        job = app.main.measure_job
        assert isinstance(job, CollectJob)
        await until(pilot, lambda: session.measurements.tensors or not job.running)
        assert job.running, "statistics were there before the end"
        assert session.imatrix is None
        await pilot.press("x", "y")
        await ran(app, pilot)
        assert "I resumes" in job.failure
        assert job.collection.partial.exists()
        assert session.measurements.tensors == {}, "the plan's own statistics are back"
        await pilot.press("enter", "I")
        form = app.screen
        assert isinstance(form, Form)
        assert "it will be resumed" in form.answer
        await pilot.press("enter")
        await ran(app, pilot)
        assert load_imatrix(out).chunk_count == 96
        assert not job.collection.partial.exists()


async def test_an_existing_imatrix_is_replaced_only_after_a_yes(model_copy: Path, demo_imatrix: Path) -> None:
    out = model_copy.with_name("there.gguf")
    mine = shutil.copyfile(demo_imatrix, out).read_bytes()
    async with opened(session_of(model_copy)) as (app, pilot):
        await pilot.press("I")
        await answer(app, pilot, out=str(out), text=str(TEXT), chunks="2", context="64")
        assert isinstance(app.screen, Confirm)
        await pilot.press("n")
        assert app.main.measure_job is None
        assert out.read_bytes() == mine


# --- prune-scan


async def test_a_scan_fills_a_column_and_goes_on(session: Session) -> None:
    async with opened(session, (130, 40)) as (app, pilot):
        assert "KLD" not in text_of(app, "heads")
        await pilot.press("S")
        form = app.screen
        assert isinstance(form, Form)
        await answer(app, pilot, text=str(TEXT), chunks="6", context="64")
        assert form.answer.startswith("text 3.81 kB\n12 layers, one left out at a time: 78 chunks")
        await until(pilot, lambda: len(session.damages) >= 2)
        await pilot.press("x", "y")
        job = await ran(app, pilot)
        measured = dict(session.damages)
        assert f"{len(measured)} of 12 layers measured and kept" in job.failure
        await pilot.press("enter")
        assert "KLD" in text_of(app, "heads")
        await pilot.press("S", "enter")
        job = await ran(app, pilot)
        assert job.failure == ""
        assert set(session.damages) == set(range(12))
        assert measured.items() <= session.damages.items()
        assert session.damages[0] == max(session.damages.values())
        await pilot.press("enter")
        app.main.apply_sort("kld")
        await pilot.pause()
        layers = [row.layer for row in app.main.tree_.rows if row.key.startswith("layer")]
        assert layers[0] == 0

    again = session_of(session.model.file.path)
    async with opened(again) as (app, pilot):
        await until(pilot, lambda: again.damages)
        assert again.damages == session.damages


async def test_the_layers_that_a_scan_chooses_are_pruned_by_enter(session: Session) -> None:
    session.toggle_prune([3])
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("S")
        form = app.screen
        assert isinstance(form, Form)
        await answer(app, pilot, text=str(TEXT), chunks="1", context="64", count="12")
        assert "the model has 12 layers, and one must stay" in form.answer
        form.query_one("#count", Input).value = "2"
        await pilot.pause()
        assert "about 23 sets of layers, 1 chunk each" in form.answer
        await pilot.press("enter")
        job = await ran(app, pilot)
        assert isinstance(job, ScanJob)
        chosen = job.chosen()
        assert len(chosen) == 2
        assert job.standing is not None
        assert (job.standing.index, job.standing.count) == (1, 2), "the second scan of two"
        singles = {layers[0]: one.mean_kld for layers, one in job.scan.damages.items() if len(layers) == 1}
        assert min(singles, key=singles.__getitem__) in chosen, "greedy keeps the best single one"
        dialog = app.screen
        assert isinstance(dialog, MeasureDialog)
        assert f"prune these: {chosen[0]},{chosen[1]}   KLD {job.scan.damages[chosen].mean_kld:.4f}" in dialog.shown
        await pilot.press("enter")
        assert app.screen is app.main
        assert session.plan.pruned == set(chosen), "and no others"
        await pilot.press("u")
        assert session.plan.pruned == {3}


# --- what needs no engine


def test_the_newest_scan_of_a_model_is_read(tmp_path: Path) -> None:
    assert last_damages(tmp_path, "id") == {}
    (tmp_path / "id-a.json").write_text(
        '{"damages": [{"layers": [3], "mean_kld": 0.5}, {"layers": [3, 4], "mean_kld": 1}]}'
    )
    (tmp_path / "id-b.json").write_text("half of it")
    (tmp_path / "other-a.json").write_text('{"damages": [{"layers": [1], "mean_kld": 0.5}]}')
    os.utime(tmp_path / "id-a.json", (1, 1))
    assert last_damages(tmp_path, "id") == {3: 0.5}


def test_figures_of_layers_have_a_place_only_when_measured(session: Session) -> None:
    kld = METRICS["kld"]
    assert not session.measurements.known(kld)
    assert session.measurements.known(METRICS["cos"])
    session.damages.update({0: 4.0, 1: 0.04, 2: 0.4})
    assert session.measurements.known(kld)
    assert session.measurements.of_layer(kld, 1) == 0.04
    assert session.measurements.of_layer(kld, 7) is None
    assert session.measurements.of_tensor(kld, "blk.1.ffn_down.weight") is None
    assert session.measurements.fraction(kld, None, 0.4) == pytest.approx(0.5)
    assert session.measurements.curve(kld, "ffn_down", range(4)) == [4.0, 0.04, 0.4, None]


def test_answers_of_another_model_are_offered_where_they_can_hold(tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    kept_answers.remember(one, "collect", {"text": "a.txt", "out": "one.imatrix"})
    assert kept_answers.remembered(one, "collect") == {"text": "a.txt", "out": "one.imatrix"}
    assert kept_answers.remembered(two, "collect", ("text",)) == {"text": "a.txt"}
    assert kept_answers.remembered(one, "scan") == {}
    for path in (tmp_path / "state").rglob("*.json"):
        path.write_text("[half")
    assert kept_answers.remembered(one, "collect", ("text",)) == {}


def test_a_list_of_texts_is_not_replaced_by_one(tmp_path: Path) -> None:
    model = tmp_path / "one.gguf"
    kept_answers.remember(model, "heal", {"text": f"{TEXT},{TEXT}", "held_out": str(TEXT)})
    assert "text" not in kept_answers.remembered(model, "collect"), "a list is no text to collect from"
    assert kept_answers.remembered(model, "evaluate")["text"] == str(TEXT)
    kept_answers.remember(model, "collect", {"text": str(TEXT)})
    assert kept_answers.remembered(model, "heal")["text"] == f"{TEXT},{TEXT}"


@pytest.mark.parametrize(("first", "second"), [("S", "e"), ("e", "S"), ("F", "I"), ("I", "F")])
async def test_a_text_is_offered_wherever_one_is_asked_for(
    session: Session, tmp_path: Path, first: str, second: str
) -> None:
    """Measured on and calibrated on are two things: the one is not offered for the other."""
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes())

    async def offered(key: str) -> str:
        await pilot.press(key)
        return app.screen.query_one("#text", Input).value

    async with opened(session) as (app, pilot):
        app.main.queue.pause(True)
        await pilot.press(first)
        app.screen.query_one("#text", Input).value = str(text)
        await pilot.pause()
        await pilot.press("ctrl+l")
        assert app.main.queue.waiting
        assert await offered(second) == str(text)
        await pilot.press("escape")
        other = "I" if first in "Se" else "e"
        assert await offered(other) == f"{session.model.file.path.parent}/"


def test_what_the_form_says_is_what_is_wanted() -> None:
    wanted = wanted_of({"what": "kld speed", **SMALL, "tasks": "ignored", "n_tasks": ""})
    assert (wanted.divergence, wanted.perplexity, wanted.speed, wanted.tasks) == (True, False, True, ())
    assert (wanted.text, wanted.n_ctx, wanted.n_chunks) == (TEXT, 64, 2)
    assert number_of({"chunks": "-1"}, "chunks", -1, 1) == -1
    with pytest.raises(SurgeonError, match="must be a whole number ≥ 1"):
        number_of({"chunks": "0"}, "chunks", -1, 1)
    assert paths_of("a.bin, ~/b.csv,") == (Path("a.bin"), Path("~/b.csv").expanduser())


def test_a_standing_in_words() -> None:
    standing = Standing(
        "KL divergence", 1, 3, 0.25, "2 of 8 chunks", {"ppl": 12.5, "ppl_error": 0.5, "mean_kld": 0.01}, 75
    )
    lines = [plain(line) for line in standing_lines(standing, 60)]
    assert lines[0] == "KL divergence  2 of 3"
    assert lines[2].endswith("25.0%")
    assert len(lines[2]) == 60
    assert lines[3] == f"2 of 8 chunks   {figures.duration(75)} left"
    assert lines[4].strip() == "PPL 12.5000 ±0.5000   KLD 0.010000"


async def test_help_has_the_page(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("question_mark")
        assert "collects an importance matrix" in app.screen.shown  # type: ignore[attr-defined]
        assert "block influence" in app.screen.shown  # type: ignore[attr-defined]


async def test_typing_a_path_in_a_form(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("S")
        await typed(pilot, "novels")
        form = app.screen
        assert isinstance(form, Form)
        assert form.answers["text"].endswith("/novels")
        assert "no such file" in form.answer


# --- the end of a long one


class Heard(LinuxDriver):
    """A terminal that keeps what is written to it."""

    def __init__(self) -> None:
        self.said = ""
        self._writer_thread = object()  # type: ignore[assignment]

    def write(self, data: str) -> None:
        self.said += data


class Evaluated:
    """An evaluation that has its figures."""

    run = None

    def __init__(self, figures: dict[str, float]) -> None:
        self.trial = new_trial("Q4_K_M+2", 7_000_000, 23_000_000, measured=Measured(figures, {"text": "a.txt"}))

    def steps(self) -> Iterator[Standing]:
        yield Standing("perplexity", 1, 2)


@pytest.mark.parametrize(
    ("figures_", "seconds", "told"),
    [
        ({"mean_kld": 0.02314, "ppl": 61.5}, LONG_JOB, "KLD .0231 · Q4_K_M+2"),
        ({"mean_kld": 0.000021, "ppl": 61.5}, LONG_JOB, "KLD 2.1e-05 · Q4_K_M+2"),
        ({"ppl": 61.50004}, LONG_JOB, "PPL 61.5000 · Q4_K_M+2"),
        ({"mean_kld": 0.02314}, 0.0, ""),
    ],
)
async def test_the_end_of_a_long_evaluation_tells_its_figure(
    session: Session, figures_: dict[str, float], seconds: float, told: str
) -> None:
    async with opened(session) as (app, pilot):
        terminal = Heard()
        app.beside = Beside(terminal)
        job = EvaluateJob(Evaluated(figures_))  # type: ignore[arg-type]
        job.began -= seconds
        app.main._begin(job)
        assert app.main.status == "measuring …"
        await until(pilot, lambda: app.main.status == "")
        notices = re.findall(r"\x07\x1b\]9;([^\x07]*)\x07", terminal.said)
        assert notices == ([told] if told else [])
