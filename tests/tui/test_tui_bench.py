"""The journal of trials on the screen, and the lines and the plot it is made of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.content import Content
from textual.pilot import Pilot
from tui_helpers import opened, session_of, typed

from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, to_toml
from surgeon.session.queue import Entry
from surgeon.session.session import Session
from surgeon.trials.journal import Journal, Measured, Speed, Trial, new_trial
from surgeon.trials.tables import signs
from surgeon.tui.app import SurgeonApp
from surgeon.tui.dialogs.base import Frame
from surgeon.tui.dialogs.bench.page import BenchPage, Comparison, key_lines
from surgeon.tui.dialogs.bench.plot import TrialPlot, plot_lines
from surgeon.tui.dialogs.bench.queue_lines import entry_line
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.forms.form import Form
from surgeon.tui.dialogs.forms.write import WriteDialog
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.drawing.scatter import Point, scatter
from surgeon.tui.drawing.spans import plain, width_of
from surgeon.tui.drawing.trial_lines import compare_lines, filled_columns, head_line, layout, ordered, trial_line


def trial(label: str, size: int, kld: float | None = None, plan: Plan | None = None, **rest: Any) -> Trial:
    figures = {} if kld is None else {
        "ppl": 60 + kld, "ppl_error": 4.0, "mean_kld": kld, "mean_kld_error": 0.001, "same_top": 0.9,
        "rms_delta_p": 0.02, "kld_99": 0.3,
    }  # fmt: skip
    conditions = {} if kld is None else {"text": "a.txt", "n_chunks": 8, "n_ctx": 512}
    recipe = "" if plan is None else to_toml(Recipe(plan))
    rest.setdefault("measured", Measured(figures, conditions))
    when = rest.pop("when", None)
    made = new_trial(label, size, 23_000_000, recipe=recipe, **rest)
    return made if when is None else replace(made, when=when)


TRIALS = [
    trial("q4", 7_000_000, 0.005, Plan("Q4_0")),
    trial("q8", 12_000_000, 0.0001, Plan("Q8_0")),
    trial("pruned", 6_500_000, 0.03, Plan("Q4_0", pruned=frozenset({9}))),
    trial("worse", 9_000_000, 0.04, Plan("Q5_0")),
    trial("written", 8_000_000),
]


@pytest.fixture
def session(model_copy: Path) -> Session:
    return session_of(model_copy)


@pytest.fixture
def journal(session: Session) -> Journal:
    journal = Journal.of_model(session.model.file.path)
    for entry in TRIALS:
        journal.add(entry)
    return journal


async def open_bench(app: SurgeonApp, pilot: Pilot[int]) -> BenchPage:
    await pilot.press("L")
    dialog = app.screen
    assert isinstance(dialog, BenchPage)
    return dialog


async def go(pilot: Pilot[int], dialog: BenchPage, label: str) -> None:
    await pilot.press("g")
    for _ in dialog.trials:
        if dialog.trial is not None and dialog.trial.label == label:
            return
        await pilot.press("j")
    raise AssertionError(f"{label} is not in the list")


# --- on the screen


async def test_an_empty_journal_says_what_fills_it(session: Session) -> None:
    async with opened(session) as (app, pilot):
        dialog = await open_bench(app, pilot)
        assert dialog.trial is None
        await pilot.press("enter", "b", "x", "c", "e", "m")
        assert app.screen is dialog
        await pilot.press("escape")
        assert app.screen is app.main


async def test_restoring_a_plan_is_one_step(session: Session, journal: Journal) -> None:
    async with opened(session) as (app, pilot):
        session.set_file_type("F16")
        dialog = await open_bench(app, pilot)
        await go(pilot, dialog, "pruned")
        await pilot.press("enter")
        assert app.screen is app.main
        assert (session.plan.file_type, session.plan.pruned) == ("Q4_0", {9})
        await pilot.press("u")
        assert (session.plan.file_type, session.plan.pruned) == ("F16", frozenset())
        dialog = await open_bench(app, pilot)
        await go(pilot, dialog, "written")
        await pilot.press("enter")
        assert app.screen is dialog, "its recipe is not known"


async def test_sorting(session: Session, journal: Journal) -> None:
    def shown() -> list[str]:
        names = {entry.id: entry.label for entry in dialog.trials}
        choices = dialog.query_one("#trials")
        return [names[option.id] for option in choices.options]  # type: ignore[attr-defined]

    async with opened(session) as (app, pilot):
        dialog = await open_bench(app, pilot)
        await pilot.press("s", "g", "j", "enter")
        assert dialog.sort == "size"
        assert shown() == ["pruned", "q4", "written", "worse", "q8"]
        await pilot.press("s", "enter")
        assert shown() == ["q8", "worse", "written", "q4", "pruned"]


async def test_comparing_two(session: Session, journal: Journal) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        dialog = await open_bench(app, pilot)
        await pilot.press("c")
        assert app.screen is dialog, "two are needed"
        await go(pilot, dialog, "q4")
        await pilot.press("space")
        await go(pilot, dialog, "pruned")
        await pilot.press("space", "c")
        assert isinstance(app.screen, Comparison)
        assert "median KLD" not in app.screen.shown, "not measured"
        assert "99% KLD" in app.screen.shown
        assert "+0.025" in app.screen.shown
        assert "+ prune = [9]" in app.screen.shown
        await pilot.press("escape")
        assert app.screen is dialog


async def test_brackets_in_a_frame_are_text(demo_model: Path, tmp_path: Path) -> None:
    """Textual takes them for markup: a name, or the hint of the plot, would lose them."""
    path = tmp_path / "a[red]b.gguf"
    path.write_bytes(demo_model.read_bytes())
    async with opened(session_of(path)) as (app, pilot):
        dialog = await open_bench(app, pilot)
        assert Content.from_markup(str(dialog.query_one(Frame).border_title)).plain == "bench of a[red]b.gguf"
        await pilot.press("p")
        await pilot.pause()
        assert "[a] selected" in Content.from_markup(str(app.screen.query_one(Frame).border_subtitle)).plain


async def test_best_rename_and_delete(session: Session, journal: Journal) -> None:
    async with opened(session) as (app, pilot):
        dialog = await open_bench(app, pilot)
        await go(pilot, dialog, "q4")
        await pilot.press("b")
        assert [entry.label for entry in journal.trials() if entry.best] == ["q4"]
        await pilot.press("n")
        assert isinstance(app.screen, Prompt)
        await typed(pilot, "-first")
        await pilot.press("enter")
        assert dialog.trial is not None
        assert dialog.trial.label == "q4-first"
        await pilot.press("n")
        for _ in "4-first":
            await pilot.press("backspace")
        await typed(pilot, "8")
        await pilot.press("enter")
        assert isinstance(app.screen, Prompt), "another one is called so"
        await pilot.press("escape", "x")
        assert isinstance(app.screen, Confirm)
        await pilot.press("n")
        assert len(journal.trials()) == 5
        await pilot.press("x", "y")
        assert sorted(entry.label for entry in journal.trials()) == ["pruned", "q8", "worse", "written"]
        assert len(dialog.trials) == 4


async def test_exporting_markdown(session: Session, journal: Journal, model_copy: Path) -> None:
    async with opened(session) as (app, pilot):
        await open_bench(app, pilot)
        await pilot.press("m", "enter")
        tables = model_copy.with_name("novels-12M-F16.trials.md").read_text()
        assert "| q8 | 23.00 | 12.00 | 47.8% |" in tables
        assert "### Perplexity and KL divergence" in tables


async def test_the_plot(session: Session, journal: Journal) -> None:
    async with opened(session) as (app, pilot):
        await open_bench(app, pilot)
        await pilot.press("p")
        assert isinstance(app.screen, TrialPlot)
        assert "a ◆ pruned" in app.screen.shown
        assert "c   worse" in app.screen.shown


async def test_measuring_a_trial_again(session: Session, journal: Journal) -> None:
    async with opened(session) as (app, pilot):
        dialog = await open_bench(app, pilot)
        await go(pilot, dialog, "pruned")
        await pilot.press("e")
        await pilot.pause()
        assert isinstance(app.screen, Form)
        assert "the plan, " in app.screen.answer
        await pilot.press("escape")
        dialog = await open_bench(app, pilot)
        await go(pilot, dialog, "written")
        await pilot.press("e")
        await pilot.pause()
        assert app.screen is app.main
        assert "its file is gone and its recipe is unknown" in app.main.message


async def test_every_write_is_a_row(session: Session, model_copy: Path) -> None:
    async with opened(session) as (app, pilot):
        session.set_file_type("F16")
        session.toggle_prune([9])
        await pilot.press("w")
        assert isinstance(app.screen, WriteDialog)
        await pilot.press("enter")
        for _ in range(2000):
            await pilot.pause(0.02)
            if app.job is not None and app.job.summary is not None:
                break
        await pilot.press("enter")
        dialog = await open_bench(app, pilot)
        assert dialog.trial is not None
        assert dialog.trial.label == "novels-12M-pruned-9-F16"
        assert dialog.trial.size == model_copy.with_name("novels-12M-pruned-9-F16.gguf").stat().st_size
        assert dialog.trial.bpw == pytest.approx(session.resolution.bpw)
        assert "not measured yet" in str(dialog.query_one("#about").render())
        # The same plan is now measured from the file it was written to.
        await pilot.press("escape", "e")
        assert isinstance(app.screen, Form)
        assert "novels-12M-pruned-9-F16.gguf" in app.screen.answer


async def test_a_journal_that_cannot_be_written_costs_a_line(session: Session, journal: Journal) -> None:
    async with opened(session) as (app, pilot):
        dialog = await open_bench(app, pilot)
        content = journal.path.read_bytes()
        journal.path.unlink()
        journal.path.mkdir()
        await pilot.press("b")
        assert app.screen is dialog
        keys = str(dialog.query_one("#keys").render())  # type: ignore[attr-defined]
        assert "cannot be" in keys
        journal.path.rmdir()
        journal.path.write_bytes(content)


# --- the lines


@pytest.mark.parametrize("width", [60, 72, 100, 200])
def test_lines_are_as_wide_as_the_list(width: int) -> None:
    columns, name = layout(width)
    assert name >= 18
    assert columns[0].key == "size"
    for line in (head_line(layout(width), "size", True), trial_line(TRIALS[0], layout(width), chosen=True, sign="◆")):
        assert width_of(line) == 4 + name + sum(column.width + 2 for column in columns) == width
    assert all(width_of(line) <= width for line in key_lines(width))


def test_columns_in_which_nothing_was_measured_are_left_out() -> None:
    assert [column.key for column in filled_columns([TRIALS[4]])] == ["size", "when"]
    measured = {column.key for column in filled_columns(TRIALS, 0.0001)}
    assert {"ppl", "mean_kld", "factor", "same_top"} <= measured
    assert not {"tasks", "tg128", "pp512"} & measured


async def test_the_bench_shows_the_columns_that_say_something(session: Session, journal: Journal) -> None:
    async with opened(session, (200, 60)) as (app, pilot):
        dialog = await open_bench(app, pilot)
        heads = str(dialog.query_one("#heads").render())  # type: ignore[attr-defined]
        assert "same top" in heads
        assert "tasks" not in heads
        journal.add(trial("fast", 1, measured=Measured(speed={"tg128": Speed(20.0, 1.0, 21.0)})))
        dialog.reload()
        heads = str(dialog.query_one("#heads").render())  # type: ignore[attr-defined]
        assert "tg t/s" in heads
        assert "pp t/s" not in heads


def test_names_take_no_more_room_than_the_longest() -> None:
    names = ["a" * 24, "b"]
    assert layout(200, names=names).name == 24
    assert layout(200, names=["b"]).name == 18
    assert layout(104, names=["a" * 33]).name == 33, "rather than the time of day"
    narrow = layout(72, names=["a" * 90])
    assert narrow.name + 4 + sum(column.width + 2 for column in narrow.columns) == 72


def test_what_was_not_measured_comes_last_in_any_order() -> None:
    assert [entry.label for entry in ordered(TRIALS, "mean_kld", False)][-1] == "written"
    assert [entry.label for entry in ordered(TRIALS, "mean_kld", True)] == ["worse", "pruned", "q4", "q8", "written"]
    assert ordered(TRIALS, "label", False)[0].label == "pruned"
    scored = trial("t", 1, measured=Measured(tasks={"a": (30.0, 1.0), "b": (50.0, 0.0)}))
    assert ordered([*TRIALS, scored], "tasks", True)[0] is scored
    assert "40.00" in plain(trial_line(scored, layout(200), chosen=False))


def test_only_what_was_measured_alike_is_ranked() -> None:
    other = trial("other", 1_000_000, 0.00001, when="2000-01-01")
    other = replace(other, measured=replace(other.measured, conditions={"text": "b.txt"}))
    found = signs([*TRIALS, other])
    assert found == {TRIALS[0].id: "◆", TRIALS[1].id: "◆", TRIALS[2].id: "◆", other.id: "≠"}
    newest = replace(other, when="2999-01-01")
    assert signs([*TRIALS, newest])[newest.id] == "◆"
    assert signs([*TRIALS, newest])[TRIALS[0].id] == "≠"
    assert signs([TRIALS[4]]) == {}


@pytest.mark.parametrize("y", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_signs_of_a_plot_stand_on_their_line(y: float) -> None:
    points = [Point(1, y, "a", front=True), Point(9, y, "b", front=True), Point(5, 0.0, "c"), Point(5, 1.0, "d")]
    (line,) = [text for text in map(plain, scatter(points, 60, 16, "KLD")) if "a" in text[9:]]
    between = line[line.index("a") + 1 : line.index("b")]
    assert between.isprintable()
    assert all(0x2800 < ord(sign) <= 0x28FF for sign in between)


def test_speeds_are_compared_too() -> None:
    fast = trial("fast", 1, measured=Measured(speed={"tg128": Speed(20.0, 1.0, 21.0)}))
    lines = "\n".join(plain(line) for line in compare_lines(TRIALS[0], fast, 90))
    assert "tg128" in lines
    assert "size" in lines


def test_a_comparison_names_figures_as_the_table_does() -> None:
    lines = "\n".join(plain(line) for line in compare_lines(TRIALS[0], TRIALS[1], 74))
    assert "mean_kld" not in lines
    assert re.search(r"^KLD +0\.005000 +0\.000100 +−0\.004900", lines, re.MULTILINE), lines
    assert all(len(line) <= 74 for line in lines.splitlines())


def test_of_a_long_name_the_end_is_seen() -> None:
    named = trial("gemma-3-12b-it-pruned-Q4_K_M", 1)
    assert "…" in (line := plain(trial_line(named, layout(80), chosen=False)))
    assert "pruned-Q4_K_M " in line
    assert "pruned-Q4_K_M" in plain(entry_line(Entry("write", named.label), 1, "", 72))


def test_labels_cannot_write_on_the_terminal() -> None:
    assert "\x1b" not in plain(trial_line(trial("a\x1b[2J", 1), layout(80), chosen=False))


# --- the plot


def test_points_stand_where_they_belong() -> None:
    points = [Point(10, 1.0, "a", True), Point(20, 0.01, "b", True), Point(20, 1.0, "c")]
    lines = [plain(line) for line in scatter(points, 40, 13, "KLD")]
    assert lines[0] == "KLD, logarithmic"
    assert all(len(line) <= 40 for line in lines)
    where = {
        letter: (row, line.index(letter)) for row, line in enumerate(lines[1:-2]) for letter in "abc" if letter in line
    }
    assert where["a"][0] == where["c"][0] < where["b"][0]
    assert where["a"][1] < where["b"][1] == where["c"][1]
    drawn = [sign for line in lines for sign in line if "\u2800" < sign <= "\u28ff"]
    assert len(drawn) >= 8, "the front is a line from a to b"


def test_points_that_are_all_alike_have_a_place_too() -> None:
    for points in ([Point(5, 0.0, "a", True)], [Point(0, 0.0, "a"), Point(0, 0.0, "b")]):
        assert any("a" in plain(line) or "b" in plain(line) for line in scatter(points, 40, 10, "")[1:])


def test_a_plot_without_figures_says_so() -> None:
    assert "no trial has a KL divergence yet" in plain(plot_lines(TRIALS[4:], 80, 20)[0])
    assert plain(plot_lines(TRIALS, 80, 20)[-1]) == "1 more: not measured, or not on the same text"
