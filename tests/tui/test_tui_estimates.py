"""Forms say before Enter what the run will take, and follow every key."""

from __future__ import annotations

import os
import time as clock
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static
from tui_helpers import opened, session_of

from surgeon import figures
from surgeon.measure import estimate as estimates
from surgeon.measure.estimate import Estimate
from surgeon.measure.speeds import BASE, DIVERGENCE, HEAL, IMATRIX, PROBE, SCAN, START, Speeds, Stage
from surgeon.plan.plan import with_file_type
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config
from surgeon.tui.dialogs.forms.form import Form, Switches
from surgeon.tui.dialogs.running.measuring import MeasureDialog
from surgeon.tui.drawing.estimate_lines import estimate_lines

SIZES = ((80, 24), (200, 60))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr("surgeon.folders.cache_folder", lambda: folder)
    return folder


@pytest.fixture
def session(model_copy: Path) -> Session:
    return session_of(model_copy)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("lamp " * 8000)
    return path


async def form_of(app: SurgeonApp, pilot: Pilot[int], key: str, **texts: str) -> Form:
    """The form that a key opens, filled."""
    await pilot.press(key)
    form = app.screen
    assert isinstance(form, Form)
    await fill(form, pilot, **texts)
    return form


async def fill(form: Form, pilot: Pilot[int], **texts: str) -> None:
    for name, value in texts.items():
        field = form.query_one(f"#{name}")
        if isinstance(field, Switches):
            field.chosen = set(value.split())
            form.say()
        else:
            assert isinstance(field, Input)
            field.value = value
    await pilot.pause()


def height(form: Form) -> int:
    return form.query_one("#answer", Static).size.height


def last(form: Form) -> tuple[str, str]:
    time, room = form.answer.splitlines()[-2:]
    assert len(time) <= 74, "80 columns hold it"
    assert len(room) <= 74
    return time, room


@pytest.mark.parametrize("size", SIZES)
async def test_measuring(session: Session, text: Path, size: tuple[int, int]) -> None:
    session.change(with_file_type(session.plan, "Q4_K_M"), "base type")
    async with opened(session, size) as (app, pilot):
        form = await form_of(app, pilot, "e", what="kld", text=str(text), chunks="4", context="64")
        time, room = last(form)
        assert time == "time unknown until the first chunk; 512 tokens, 11.5 M weights to encode"
        assert room.startswith("disk 1.02 MB of ")  # 4 chunks × 31 positions × 2 × (4096 + 4) bytes
        assert " free · memory " in room
        speeds = app.main.ground.speeds
        speeds.keep(Stage(START), 1.0)
        speeds.keep(Stage(BASE, 256, 64), 2.0)
        speeds.keep(Stage(DIVERGENCE, 256, 64), 3.0)
        speeds.keep(Stage("encode Q4_K_M", 1e7), 1.0)
        rows = height(form)
        for chunks, said in (("", ""), ("0", "must be"), ("8", "about 13 s for 1,024 tokens"), ("4", "about 8 s for")):
            await fill(form, pilot, chunks=chunks)
            assert said in form.answer
            assert height(form) == rows, "nothing jumps"


async def test_what_does_not_fit_is_told_before_enter_and_enter_goes_on(
    session: Session, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(estimates, "available_memory", lambda: 1 << 20)
    async with opened(session, config=Config(ascii=True)) as (app, pilot):
        form = await form_of(app, pilot, "e", what="kld", text=str(text), chunks="4", context="64")
        _, room = last(form)
        assert room.startswith("disk 1.02 MB, only 1.00 kB free · memory ")
        assert room.endswith(", only 1.00 MiB free")
        await pilot.press("enter")
        assert isinstance(app.screen, MeasureDialog), "the run itself finds out, and says so"
        await pilot.press("x", "y")


def test_what_does_not_fit_has_the_colour_of_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(estimates, "available_memory", lambda: 1000)
    for disk, memory, roles in ((1, 1, ["muted"] * 3), (2000, 1, ["warning", "muted", "muted"])):
        _, room = estimate_lines(Estimate("work", (), disk, Path("/"), memory), Speeds())
        assert [role for _, role in room] == roles
    _, room = estimate_lines(Estimate("work", (), 1, Path("/"), 2000), Speeds())
    assert [role for _, role in room] == ["muted", "muted", "warning"]


@pytest.mark.parametrize("size", SIZES)
async def test_scanning(session: Session, text: Path, size: tuple[int, int]) -> None:
    async with opened(session, size) as (app, pilot):
        form = await form_of(app, pilot, "S", text=str(text), chunks="2", context="64")
        assert last(form)[0] == "time unknown until the first chunk; 1,664 tokens"
        speeds = app.main.ground.speeds
        speeds.keep(Stage(START), 1.0)
        speeds.keep(Stage(SCAN, 64, 64), 1.0)
        await fill(form, pilot, chunks="1")
        assert last(form)[0] == "about 14 s for 832 tokens"
        await fill(form, pilot, count="2")
        assert last(form)[0] == "about 27 s for 1,600 tokens"  # 12 + 11 sets and two bases, two starts
        assert last(form)[1].startswith("disk 254 kB of ")
        await fill(form, pilot, how="healed")
        assert last(form)[0].startswith("time unknown until the first chunk; 1,600 tokens")
        assert last(form)[1].startswith("disk 107 MB of "), "streams are kept there, and matrices as float32"


@pytest.mark.parametrize("size", SIZES)
async def test_fitting(session: Session, text: Path, size: tuple[int, int]) -> None:
    async with opened(session, size) as (app, pilot):
        form = await form_of(app, pilot, "F", text=str(text), chunks="2", context="64")
        time, room = last(form)
        assert time.startswith("time unknown until the first chunk; ")
        assert time.endswith(" weights to encode")
        assert room.startswith("disk 508 kB of ")
        speeds = app.main.ground.speeds
        for stage in (Stage(START), Stage(BASE, 64, 64), Stage(PROBE, 6400, 64), Stage("errors", 1e9)):
            speeds.keep(stage, 1.0)
        rows = height(form)
        await fill(form, pilot, chunks="3")
        assert last(form)[0].startswith("about ")
        assert height(form) == rows


@pytest.mark.parametrize("size", SIZES)
async def test_healing(session: Session, text: Path, size: tuple[int, int]) -> None:
    session.toggle_prune([9])
    async with opened(session, size) as (app, pilot):
        form = await form_of(app, pilot, "H", text=str(text), context="64")
        time, room = last(form)
        assert time == "time unknown until the first chunk; up to 11,428 tokens, 15 a column"
        assert "disk " in room
        assert " free · memory " in room
        speeds = app.main.ground.speeds
        speeds.keep(Stage(START), 1.0)
        speeds.keep(Stage(HEAL, 1e10), 1.0)
        rows = height(form)
        await fill(form, pilot, tokens="8")
        assert last(form)[0].startswith("about ")
        assert last(form)[0].endswith("tokens, 8 a column")
        assert height(form) == rows


@pytest.mark.parametrize("size", SIZES)
async def test_collecting(session: Session, text: Path, size: tuple[int, int]) -> None:
    async with opened(session, size) as (app, pilot):
        form = await form_of(app, pilot, "I", text=str(text), context="64")
        assert last(form)[0] == "time unknown until the first chunk; some 11,000 tokens"
        speeds = app.main.ground.speeds
        speeds.keep(Stage(START), 1.0)
        speeds.keep(Stage(IMATRIX, 64, 64), 1.0)
        await fill(form, pilot, chunks="7")
        assert last(form)[0] == "about 8 s for 448 tokens"
        plain = last(form)[1]
        await fill(form, pilot, how="moments")
        assert last(form)[1] != plain


async def test_a_run_leaves_its_speed_and_a_file_as_large_as_was_said(
    session: Session, text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.measure.speeds._SHORTEST", 0.0)
    async with opened(session) as (app, pilot):
        form = await form_of(app, pilot, "e", what="ppl", text=str(text), chunks="4", context="64")
        assert last(form)[0].startswith("time unknown")
        assert last(form)[1].startswith("nothing on disk, ")
        await ended(app, pilot)
        form = await form_of(app, pilot, "e", what="ppl")
        assert last(form)[0].startswith("about ")
        assert last(form)[0].endswith(" s for 256 tokens")
        await fill(form, pilot, what="kld")
        assert last(form)[1].startswith("disk 1.02 MB of ")
        await ended(app, pilot)
        (base,) = (cache / "bases").iterdir()
        assert figures.size(os.path.getsize(base)) == "1.02 MB"


async def test_a_write_says_how_long_the_last_one_makes_it(session: Session) -> None:
    session.change(with_file_type(session.plan, "Q4_0"), "base type")
    async with opened(session) as (app, pilot):
        await pilot.press("w")
        assert "takes about" not in shown(app)
        await pilot.press("enter")
        end = clock.monotonic() + 60
        while app.job is None or app.job.running:
            assert clock.monotonic() < end, "waited in vain"
            await pilot.pause(0.02)
        assert app.job.failure == ""
        assert app.main.ground.speeds.seconds([Stage("encode Q4_0", 1e6)]) is not None, "the write has left its speed"
        app.main.ground.speeds.keep(Stage("encode Q4_0", 1e6), 4.0)  # 11.5 million weights
        while app.screen is not app.main:
            await pilot.press("escape")
        await pilot.press("w")
        assert "takes about 46 s" in shown(app)


def shown(app: SurgeonApp) -> str:
    return "\n".join(str(part.render()) for part in app.screen.query(Static))


async def ended(app: SurgeonApp, pilot: Pilot[int]) -> None:
    """Begin the run, wait for its end, close its dialog."""
    await pilot.press("enter")
    job = app.main.measure_job
    assert job is not None
    end = clock.monotonic() + 60
    while job.running:
        assert clock.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)
    assert job.failure == ""
    await pilot.press("enter")
