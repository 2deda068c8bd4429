"""The running screen by Pilot: trees as dictionaries, plans as they come out."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.geometry import Region
from textual.widgets import Input
from tui_helpers import opened, session_of, text_of, tree, typed

from surgeon.errors import Cancelled, SurgeonError
from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value, ValueType
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan, TypeRule, WriteSettings
from surgeon.plan.recipe import Recipe, load_recipe, save_recipe
from surgeon.problems import Problem
from surgeon.session.kept_plans import kept_recipe, recipe_of
from surgeon.session.metrics import METRICS
from surgeon.session.session import Session, layer_key
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config
from surgeon.tui.dialogs.base import Choices
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.forms.write import WriteDialog
from surgeon.tui.dialogs.help import Help
from surgeon.tui.dialogs.lists.picker import Picker
from surgeon.tui.dialogs.lists.type_picker import TypePicker
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.rules import Rules
from surgeon.tui.dialogs.running.progress import ProgressDialog
from surgeon.tui.drawing.spans import plain
from surgeon.tui.jobs import writing
from surgeon.tui.jobs.writing import default_output
from surgeon.tui.keys import ACTIONS
from surgeon.tui.main_screen import MainScreen
from surgeon.tui.opening import open_session
from surgeon.write.operation import Progress, Summary

LAYERS = [layer_key(number) for number in range(12)]
TOP = ["token_embd.weight", *LAYERS, "output.weight", "output_norm.weight"]


@pytest.fixture
def session(demo_model: Path, demo_imatrix: Path) -> Session:
    return session_of(demo_model, demo_imatrix)


async def until(pilot: Any, condition: Any, seconds: float = 20.0) -> None:
    """Wait for what a thread does; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)


async def test_folding_and_moving(session: Session) -> None:
    async with opened(session) as (app, pilot):
        assert list(tree(app.main)) == TOP
        assert app.main.row is not None
        assert app.main.row.key == LAYERS[0]
        await pilot.press("j", "l")
        assert len(tree(app.main)[LAYERS[1]]) == 9
        await pilot.press("l", "j")
        assert app.main.row.key == "blk.1.ffn_down.weight"
        await pilot.press("right_square_bracket")
        assert app.main.row.key == LAYERS[2]
        await pilot.press("K", "J", "J")
        assert app.main.row.key == LAYERS[3]
        await pilot.press("G")
        assert app.main.row.key == "output_norm.weight"
        await pilot.press("g", "z", "z")
        assert sum(map(len, tree(app.main).values())) == 108
        await pilot.press("J", "j", "j", "right_square_bracket", "right_square_bracket")
        assert app.main.row.key == "blk.2.ffn_down.weight"
        await pilot.press("h")
        assert app.main.row.key == LAYERS[2]
        await pilot.press("h", "z")
        assert sum(map(len, tree(app.main).values())) == 0
        assert app.main.row.key == LAYERS[2]


async def test_pruning_renumbers_on_screen(session: Session) -> None:
    async with opened(session, (140, 45)) as (app, pilot):
        await pilot.press("J", "J", "p")
        assert session.plan.pruned == {2}
        lines = [app.main.tree_.render_line(y).text for y in range(16)]
        assert "blk.2 pruned" in lines[3]
        assert "blk.3 → 2" in lines[4]
        assert "✗ 1 pruned" in text_of(app, "header")
        await pilot.press("J", "space", "space", "p")
        assert session.plan.pruned == {2, 3, 4}
        assert session.marks == frozenset()
        await pilot.press("u", "u", "ctrl+r")
        assert session.plan.pruned == {2}


async def test_filter_and_back(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("l", "slash")
        assert isinstance(app.screen, Prompt)
        await typed(pilot, "ffn_down")
        await pilot.press("enter")
        assert tree(app.main) == {layer_key(n): [f"blk.{n}.ffn_down.weight"] for n in range(12)}
        assert "24 rows" in text_of(app, "bar")
        await pilot.press("escape")
        assert list(tree(app.main)) == TOP
        assert len(tree(app.main)[LAYERS[0]]) == 9


async def test_keys_typed_ahead_go_to_the_prompt(session: Session) -> None:
    async with opened(session) as (app, pilot):
        for key in ("slash", "f", "f", "n", "underscore", "u", "p", "enter"):
            app.post_message(events.Key(key, "_" if key == "underscore" else key if len(key) == 1 else None))
        await until(pilot, lambda: app.main.view.filter is not None)
        assert app.main.view.filter is not None
        assert app.main.view.filter.text == "ffn_up"
        assert session.plan.pruned == frozenset()


async def test_the_scrollbar_belongs_to_the_paint_of_its_rows(session: Session) -> None:
    async with opened(session) as (app, _):
        bar = app.main.tree_.vertical_scrollbar
        for layers in (12, 8):
            app.main.look(unfolded=frozenset(range(layers)))
            assert bar.window_virtual_size == len(app.main.tree_.rows), "known before anything is drawn"


async def test_a_wrong_filter_is_not_taken(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("slash")
        await typed(pilot, "colour=red")
        await pilot.press("enter")
        assert isinstance(app.screen, Prompt)
        await pilot.press("escape")
        assert app.main.view.filter is None


async def test_sorting_keeps_layer_zero_last(session: Session) -> None:
    async with opened(session) as (app, pilot):
        app.main.apply_sort("cos")
        await pilot.pause()
        layers = [key for key in tree(app.main) if key in LAYERS]
        assert layers[0] == layer_key(5)
        assert layers[-1] == layer_key(0)
        app.main.apply_sort("cos")
        await pilot.pause()
        layers = [key for key in tree(app.main) if key in LAYERS]
        assert (layers[0], layers[-1]) == (layer_key(1), layer_key(0))
        await pilot.press("escape")
        assert list(tree(app.main)) == TOP


async def test_types_for_the_row_a_kind_and_the_marked(session: Session) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("l", "j", "j", "t")
        picker = app.screen
        assert isinstance(picker, TypePicker)
        assert picker.scope == "row"
        await until(pilot, lambda: len(picker.found) == len(picker.names) - 1)
        assert picker.found["Q8_0"].nbytes == 768 * 256 // 32 * 34
        picker.dismiss("Q8_0")
        await pilot.pause()
        assert dict(session.plan.types) == {"blk.0.ffn_down.weight": "Q8_0"}
        await pilot.press("t", "tab", "tab")
        assert isinstance(app.screen, TypePicker)
        assert app.screen.scope == "kind"
        app.screen.dismiss("Q5_K")
        await pilot.pause()
        assert len(session.plan.types) == 12
        await pilot.press("u", "T")
        assert session.plan.types == ()
        await pilot.press("space", "space", "t")
        assert isinstance(app.screen, TypePicker)
        assert app.screen.scope == "marked"
        app.screen.dismiss("Q6_K")
        await pilot.pause()
        assert [name for name, _ in session.plan.types] == ["blk.0.ffn_down.weight", "blk.0.ffn_gate.weight"]


async def test_a_pruned_row_offers_no_types(session: Session) -> None:
    """The only scope left would be the whole model."""
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("p", "t")
        assert app.screen is app.main
        await pilot.press("p", "t")
        assert isinstance(app.screen, TypePicker)
        assert app.screen.scope == "layer"


async def test_measured_errors_come_in(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.tui.dialogs.lists.type_picker.TYPES", ("F16", "Q8_0", "Q4_0"))
    async with opened(session, (140, 45)) as (app, pilot):
        await pilot.press("l", "j", "j", "t")
        errors = app.main.errors["blk.0.ffn_down.weight"]
        await until(pilot, lambda: len(errors) == 3, 120)
        assert errors["F16"] == 0
        assert 0.001 < errors["Q8_0"] < 0.02 < errors["Q4_0"] < 0.2
        await pilot.press("escape")
        assert "Q4_0 0.0" in text_of(app, "detail") or "Q4_0 0.1" in text_of(app, "detail")


async def test_measured_errors_belong_to_their_imatrix(demo_model: Path, demo_imatrix: Path) -> None:
    async with opened(session_of(demo_model)) as (app, pilot):
        without = app.main.errors
        without["blk.0.ffn_down.weight"] = {"Q4_0": 0.1}
        app.main.plan_changed()
        assert app.main.errors is without
        app.main.apply_imatrix(str(demo_imatrix))
        assert app.main.errors == {}
        app.main.errors["blk.0.ffn_down.weight"] = {"Q4_0": 0.2}
        await pilot.press("u")
        assert app.main.errors == {}


async def test_commands_rules_and_undo(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("colon")
        await typed(pilot, "base q4_k_m")
        await pilot.press("enter", "colon")
        await typed(pilot, r"\.(1[0-9]|2)\.ffn_down=q5_k")
        await pilot.press("enter", "colon")
        await typed(pilot, "prune 3,5")
        await pilot.press("enter")
        assert session.plan.file_type == "Q4_K_M"
        assert session.plan.pruned == {3, 5}
        changed = [op.source for op in session.resolution.kept if op.reason.startswith("rule")]
        assert sorted(changed) == ["blk.10.ffn_down.weight", "blk.11.ffn_down.weight", "blk.2.ffn_down.weight"]
        await pilot.press("r")
        assert isinstance(app.screen, Rules)
        assert app.screen.keys() == ["rule 0", "pruned"]
        await pilot.press("x")
        assert session.plan.rules == ()
        await pilot.press("u", "escape", "u", "u", "u")
        assert session.plan.file_type == "COPY"


async def test_rules_are_changed_and_ordered(session: Session) -> None:
    async with opened(session) as (app, pilot):
        session.set_file_type("Q4_K_M")
        session.add_rule("ffn_down=q5_k")
        session.add_rule("blk.1.=q8_0")
        await pilot.press("r", "J")
        assert [str(rule) for rule in session.plan.rules] == ["blk.1.=q8_0", "ffn_down=q5_k"]
        await pilot.press("enter", "x", "enter")
        assert isinstance(app.screen, Prompt), "q5_kx is no type"
        await pilot.press("backspace", "backspace", "1", "enter")
        assert [str(rule) for rule in session.plan.rules] == ["blk.1.=q8_0", "ffn_down=q5_1"]
        await pilot.press("u", "u", "escape")
        assert [str(rule) for rule in session.plan.rules] == ["ffn_down=q5_k", "blk.1.=q8_0"]


async def test_base_picker(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("m")
        picker = app.screen
        await until(pilot, lambda: "Q4_K_M" in picker.found)  # type: ignore[attr-defined]
        assert picker.found["Q4_K_M"].total < picker.found["Q8_0"].total  # type: ignore[attr-defined]
        picker.dismiss("Q8_0")
        await pilot.pause()
        assert session.plan.file_type == "Q8_0"


def _at(app: SurgeonApp) -> str | None:
    return app.screen.query_one(Choices).highlighted_id


def title_of(app: SurgeonApp) -> str:
    return re.sub(r"\[[^]]*\]", "", str(app.screen.query_one(".dialog").border_title))


def hint_of(app: SurgeonApp) -> str:
    return re.sub(r"\[[^]]*\]", "", str(app.screen.query_one(".dialog").border_subtitle))


async def test_typing_a_name_goes_to_it(session: Session) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("l", "j", "j", "t")
        await pilot.press("q", "4", "underscore", "k")
        assert _at(app) == "Q4_K"
        assert "type: q4_k" in title_of(app)
        await pilot.press("x", "enter")
        assert isinstance(app.screen, TypePicker), "q4_kx is the name of nothing"
        assert "no q4_kx here" in hint_of(app)
        await pilot.press("backspace", "backspace", "enter")
        assert isinstance(app.screen, TypePicker), "q4_ begins several names"
        assert "which one? Q4_1, Q4_0, Q4_K" in hint_of(app)
        await pilot.press("down", "k")
        assert _at(app) == "Q4_1", "moving forgets what was typed, and k moves again"
        assert title_of(app) == "type"
        await pilot.press("i", "q", "4", "underscore", "n", "l", "enter")
        assert dict(session.plan.types) == {"blk.0.ffn_down.weight": "IQ4_NL"}
        await pilot.press("t", "Q", "6", "enter")
        assert dict(session.plan.types) == {"blk.0.ffn_down.weight": "Q6_K"}, "nothing else begins so"
        await pilot.press("t", "l")
        assert app.screen.scope == "layer"  # type: ignore[attr-defined]
        await pilot.press("escape", "m", "q", "8", "enter")
        assert session.plan.file_type == "Q8_0"


async def test_a_type_that_cannot_be_chosen_is_not_exchanged_for_another(demo_model: Path) -> None:
    session = session_of(demo_model)
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("t")
        picker = app.screen
        assert isinstance(picker, TypePicker)
        await until(pilot, lambda: len(picker.found) == len(picker.names) - 1)
        await pilot.press(*"iq2", "underscore", *"xs", "enter")
        assert app.screen is picker
        assert _at(app) == "IQ2_XS"
        assert "IQ2_XS: needs an imatrix" in hint_of(app)
        assert session.plan.types == ()


async def test_names_are_typed_in_every_list(session: Session) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("s", *"cossim", "enter")
        assert app.main.view.sort == "cos"
        await pilot.press("s", *"si", "enter")
        assert app.main.view.sort == "size"
        await pilot.press("V", *"entropy", "enter")
        assert isinstance(app.screen, Picker), "no metric is called so"
        await pilot.press("escape", "V", "z", "d", "enter")
        assert app.main.metric.key == "zd"
        await pilot.press("c", *"before", "space", "enter")
        assert "before" in app.main.tree_.columns


async def test_types_without_a_kernel_cannot_be_chosen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon_kernels.quantizable", frozenset({"F16", "F32"}))
    async with opened(session) as (app, pilot):
        await pilot.press("l", "j", "j", "t")
        picker = app.screen
        assert isinstance(picker, TypePicker)
        await until(pilot, lambda: len(picker.found) == len(picker.names) - 1)
        assert picker.found["Q4_K"].note == "no kernel yet"
        await pilot.press(*"q4", "underscore", "k", "enter")
        assert app.screen is picker
        assert session.plan.types == ()
        await pilot.press(*["backspace"] * 4, *"f32", "enter")
        assert dict(session.plan.types) == {"blk.0.ffn_down.weight": "F32"}


async def test_help_lists_every_key_and_what_figures_are_worth(session: Session) -> None:
    async with opened(session, (100, 200)) as (app, pilot):
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        shown = app.screen.shown
        for words in ("−0.55", "Σ(Act²)", "they do not measure damage", "^r", "attn_v=q6_k", "Esc"):
            assert words in shown
        await pilot.press("escape")
        assert app.screen is app.main


async def test_imatrix_and_recipes(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    session = session_of(demo_model)
    async with opened(session) as (app, pilot):
        assert "no imatrix" in text_of(app, "header")
        assert "i imatrix" in text_of(app, "bar")
        app.main.apply_imatrix(str(demo_imatrix))
        await pilot.pause()
        assert "85/85" in text_of(app, "header")
        app.main.apply_imatrix(str(demo_model))
        await pilot.pause()
        assert app.main.message
        assert session.imatrix is not None
        await pilot.press("p")
        app.main.save_to(tmp_path / "plan.toml")
        await pilot.press("u")
        app.main.apply_recipe(str(tmp_path / "plan.toml"))
        assert session.plan.pruned == {0}
        assert load_recipe(tmp_path / "plan.toml").plan == session.plan
        app.main.apply_recipe(str(demo_imatrix.with_name("ORIGIN.md")))
        assert "TOML" in app.main.message


async def test_the_llama_quantize_command(session: Session) -> None:
    session.set_file_type("Q4_K_M")
    session.toggle_prune([7])
    session.add_rule("attn_v=q6_k")
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("y")
        words = app.screen.shown  # type: ignore[attr-defined]
        assert "--prune-layers 7" in words
        assert "attn_v" in words
        assert "--prune-layers 7" in app.clipboard


async def test_the_types_of_another_model_are_taken(session: Session, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    resolution = session.preview(replace(session.plan, file_type="Q8_0"))
    list(writing.write(resolution, None, other, writing.WriteOptions(), threading.Event()))
    async with opened(session) as (app, _):
        app.main.apply_recipe(str(session.model.file.path))
        assert "nothing in it is quantized" in app.main.message
        imatrix, settings = session.imatrix, replace(session.settings, threads=1)
        session.change(session.plan, "one thread", settings)
        app.main.apply_recipe(str(other))
        assert app.main.message == "types of other.gguf"
        assert imatrix is not None
        assert (session.imatrix, session.settings) == (imatrix, settings), "a model names neither"
        assert session.ops["blk.3.attn_q.weight"].to_type == "Q8_0"
        assert session.resolution.data_bytes == resolution.data_bytes


async def test_keys_from_the_config_file(session: Session) -> None:
    config = Config(keys={"prune": "x,f5"}, problems=("config.toml: nonsense",))
    async with opened(session, config=config) as (app, pilot):
        assert app.main.message == "config.toml: nonsense"
        await pilot.press("escape", "p")
        assert session.plan.pruned == frozenset()
        await pilot.press("x")
        assert session.plan.pruned == {0}
        app.main.unsay()
        assert "x prune" in text_of(app, "bar")


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (140, 45), (200, 60), (60, 16), (20, 6)])
async def test_every_size_is_drawn_and_resized(session: Session, size: tuple[int, int]) -> None:
    async with opened(session, size) as (app, pilot):
        await pilot.press("l", "j")
        for other in ((200, 60), (80, 24), size):
            await pilot.resize_terminal(*other)
            await pilot.pause()
            width = app.main.tree_.size.width
            assert all(app.main.tree_.render_line(y).cell_length == width for y in range(5))
            assert app.main.row is not None
            top = app.main.tree_.scroll_offset.y
            assert top <= app.main.tree_.cursor < top + max(1, app.main.tree_.size.height)


@pytest.mark.parametrize("keys", ["", "slash", "t"])
async def test_titles_stand_over_their_columns_after_a_resize(session: Session, keys: str) -> None:
    """Also behind a dialog, where the detail pane that comes beside the tree makes it narrower a moment later."""
    async with opened(session, (60, 18)) as (app, pilot):
        await pilot.press(*filter(None, [keys]))
        for size in ((124, 40), (110, 30), (124, 40), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            await until(pilot, lambda: text_of(app, "heads") == plain(app.main.tree_.heads(None, False)))


def drawn(app: SurgeonApp) -> str:
    """The letters on the screen but for what is free of disk and memory, which others change meanwhile; a field's
    cursor, which blinks, is a colour."""
    text = "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())
    return re.sub(r"[\d.]+( \w+ free)", r"…\1", text)


@pytest.mark.parametrize("key", ["question_mark", "exclamation_mark", "y", "D", "L", "w", "e", "colon", "M"])
async def test_a_dialog_fits_the_screen_after_a_resize(demo_model: Path, key: str) -> None:
    """As one that was opened at that size."""
    plan = Plan("Q4_K_M", pruned=frozenset({2}), rules=(TypeRule("no_such_tensor_in_this_model_" * 4, "Q6_K"),))
    shown = []
    for size in ((80, 24), (200, 60)):
        session = session_of(demo_model)
        session.change(plan, "many warnings")
        async with opened(session, size) as (app, pilot):
            await pilot.press(key)
            await pilot.resize_terminal(80, 24)
            await pilot.pause()
            await pilot.pause()
            shown.append(drawn(app))
    assert shown[0] == shown[1]


async def test_the_key_bar_fits_80_columns(session: Session) -> None:
    async with opened(session, (80, 24)) as (app, _):
        words = text_of(app, "bar")
        for hint in ("p prune", "t type", "m base", ": rule", "/ filter", "u undo", "w write", "? help", "q quit"):
            assert hint in words
        assert len(words) <= 80


async def test_without_an_imatrix_the_bar_says_so_and_how_to_quit(demo_model: Path) -> None:
    async with opened(session_of(demo_model), (80, 24)) as (app, _):
        words = text_of(app, "bar")
        assert words.startswith(" i imatrix  p prune")
        assert "q quit" in words


async def test_unknown_types_and_wide_names(tmp_path: Path) -> None:
    entries = [
        Entry("token_embd.weight", (64, 8), 97, 256),
        Entry("blk.0.attn_q.weight", (32, 4), 0, 512),
        Entry(f"blk.0.{'層' * 12}.weight", (32, 4), 0, 512),
    ]
    layout = header([("general.architecture", Value.of(ValueType.STRING, "we\x1bird"))], entries, 32)
    path = tmp_path / "odd.gguf"
    path.write_bytes(layout.data.ljust(layout.total_bytes, b"\0"))
    async with opened(session_of(path)) as (app, pilot):
        await pilot.press("l")
        strips = [app.main.tree_.render_line(y) for y in range(4)]
        assert "type 97" in strips[0].text
        assert {strip.cell_length for strip in strips} == {80}
        assert "\x1b" not in text_of(app, "header")


# --- writing


def slow_write(
    resolution: Any, imatrix: Any, out: Path, options: Any, cancelled: threading.Event, **_: Any
) -> Iterator[Any]:
    """A write that goes on until it is cancelled, or ends after a while."""
    for step in range(100_000):
        if cancelled.wait(0.01):
            raise Cancelled(f"{out}: cancelled, nothing was left behind")
        yield Progress("blk.0.attn_q.weight", step, 100_000, step, 100_000, 1, 2, step / 100, 1e6)
    yield Summary((out,), 1, 1, 1.0, 0, 1, 0)


async def test_a_write_is_asked_shown_cancelled_and_done(
    model_copy: Path, demo_imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(model_copy, demo_imatrix)
    async with opened(session) as (app, pilot):
        await pilot.press("p", "w")
        assert isinstance(app.screen, WriteDialog)
        with monkeypatch.context() as patch:
            patch.setattr(writing, "write", slow_write)
            await pilot.press("enter")
            assert isinstance(app.screen, ProgressDialog)
            job = app.job
            assert job is not None
            await until(pilot, lambda: job.progress is not None and job.progress.index > 3)
            assert "blk.0.attn_q.weight" in app.screen.shown
            assert not app.start(job), "one writer at a time"
            await pilot.press("b")
            assert app.screen is app.main
            await pilot.press("q")
            assert isinstance(app.screen, Confirm), "quitting while writing asks"
            await pilot.press("n", "w")
            assert isinstance(app.screen, ProgressDialog)
            await pilot.press("escape")
            assert app.screen is app.main, "Escape stops nothing"
            await pilot.press("x", "n")
            assert job.running
            await pilot.press("w", "x")
            assert isinstance(app.screen, Confirm)
            pressed = time.monotonic()
            await pilot.press("y")
            await until(pilot, lambda: not job.running)
            assert time.monotonic() - pressed < 5
            assert "cancelled" in job.failure
            await pilot.press("enter")
        assert app.screen is app.main
        await pilot.press("w", "enter")
        job = app.job
        assert job is not None
        await until(pilot, lambda: not job.running, 60)
        assert job.summary is not None, job.failure
        assert "written" in app.screen.shown  # type: ignore[attr-defined]
        await pilot.press("enter")
    with load_model(default_output(session.resolution)).file as written:
        assert len(written.tensors) == 102


async def test_an_existing_file_is_replaced_only_after_yes(model_copy: Path) -> None:
    session = session_of(model_copy)
    session.toggle_prune([1])
    out = default_output(session.resolution)
    out.write_bytes(b"GGUF, precious")
    async with opened(session) as (app, pilot):
        await pilot.press("w", "enter")
        assert isinstance(app.screen, Confirm)
        await pilot.press("enter")
        assert isinstance(app.screen, WriteDialog)
        assert out.read_bytes() == b"GGUF, precious"
        await pilot.press("enter", "y")
        job = app.job
        assert job is not None
        await until(pilot, lambda: not job.running, 60)
        assert job.summary is not None, job.failure
        assert out.stat().st_size > 10_000_000


async def test_a_recipe_says_how_the_plan_is_written(model_copy: Path, tmp_path: Path) -> None:
    """Threads and shards of a recipe, or a command, hold on the screen as with `surgeon apply`; `u` takes them back."""
    session = session_of(model_copy)
    async with opened(session) as (app, pilot):
        app.main.apply_command("surgeon quantize --split-max-size 5M --max-buffer-size 64 a.gguf b.gguf Q8_0 2")
        assert session.settings == WriteSettings(2, 64 << 20, 5_000_000)
        app.main.save_to(tmp_path / "kept.toml")
        assert load_recipe(tmp_path / "kept.toml").settings == session.settings
        await pilot.press("u")
        assert session.settings == WriteSettings()
        app.main.apply_recipe(str(tmp_path / "kept.toml"))
        await pilot.press("p", "w")
        assert isinstance(app.screen, WriteDialog)
        shards = [part.path for part in session.resolution.parts(app.screen.out, 5_000_000)]
        assert f"{len(shards)} new files, {shards[0].name}" in app.screen.answer
        await pilot.press("escape")
        shards[0].write_bytes(b"GGUF, precious")
        await pilot.press("w")
        assert "already exists" in app.screen.answer, "the shards are looked at, not a file that nobody writes"
        await pilot.press("enter", "y")
        job = app.job
        assert job is not None
        await until(pilot, lambda: not job.running, 60)
        assert job.summary is not None, job.failure
        assert job.summary.paths == tuple(shards)
        assert len(shards) > 1
        assert job.options.threads == 2


async def test_a_write_replaces_no_file_it_reads(model_copy: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "mine.gguf"
    imatrix.write_bytes(demo_imatrix.read_bytes())
    async with opened(session_of(model_copy, imatrix)) as (app, pilot):
        await pilot.press("w")
        assert isinstance(app.screen, WriteDialog)
        for path in (imatrix, model_copy):
            app.screen.query_one(Input).value = str(path)
            await pilot.pause()
            assert f"is the input {path} itself" in app.screen.answer


async def test_errors_of_a_write_are_one_line(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Iterator[Any]:
        raise SurgeonError("/out.gguf: no space left on the disk, 3 GB are missing")
        yield

    session = session_of(model_copy)
    monkeypatch.setattr(writing, "write", failing)
    async with opened(session) as (app, pilot):
        await pilot.press("p", "w", "enter")
        job = app.job
        assert job is not None
        await until(pilot, lambda: not job.running)
        assert "no space left" in app.screen.shown  # type: ignore[attr-defined]
        await pilot.press("escape")
        assert app.screen is app.main


async def test_a_plan_with_errors_cannot_be_written(session: Session) -> None:
    async with opened(session) as (app, pilot):
        session.resolution = replace(session.resolution, problems=(Problem("error", "output.weight: no kernel"),))
        await pilot.press("w", "enter")
        assert isinstance(app.screen, WriteDialog)
        assert app.job is None
        assert "cannot be written" in app.screen.answer


async def test_the_plan_is_kept_and_comes_back(model_copy: Path, demo_imatrix: Path) -> None:
    opened_ = open_session(model_copy, demo_imatrix, None)
    session = opened_.session
    assert opened_.greeting == ""
    app = SurgeonApp(session, Config(), plan_file=opened_.plan_file)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("u")
        assert session.imatrix is not None, "what a session starts with is no step"
        await pilot.press("J", "p")
        assert session.plan.pruned == {1}
    assert opened_.plan_file is not None
    second = open_session(model_copy, None, None)
    assert second.plan_file is not None
    assert second.plan_file.number == 2
    assert "another surgeon" in second.greeting
    assert second.session.plan.pruned == frozenset(), "a plan of its own"
    opened_.plan_file.release()
    again = open_session(model_copy, None, None)
    assert again.session.plan.pruned == {1}
    assert again.session.imatrix is not None
    assert "the last session" in again.greeting
    again.session.undo()
    assert again.session.plan.pruned == frozenset()
    for one in (second, again):
        assert one.plan_file is not None
        one.plan_file.release()


async def test_an_imatrix_that_is_away_for_a_session_is_not_forgotten(model_copy: Path, demo_imatrix: Path) -> None:
    imatrix, away = model_copy.with_name("m.imatrix.gguf"), model_copy.with_name("elsewhere")
    shutil.copyfile(demo_imatrix, imatrix)

    @asynccontextmanager
    async def session_with(first: Path | None) -> AsyncIterator[tuple[Session, str, Any]]:
        one = open_session(model_copy, first, None)
        async with SurgeonApp(one.session, Config(), plan_file=one.plan_file).run_test(size=(80, 24)) as pilot:
            yield one.session, one.greeting, pilot
        assert one.plan_file is not None
        one.plan_file.release()

    async with session_with(imatrix) as (_, _, pilot):
        await pilot.press("J", "p")
    imatrix.rename(away)
    async with session_with(None) as (session, greeting, pilot):
        assert "without its imatrix" in greeting
        await pilot.press("J", "J", "p")
        assert session.imatrix is None
        assert recipe_of(session).imatrix is None, "a recipe that is saved names no file that took no part"
    away.rename(imatrix)
    async with session_with(None) as (session, _, pilot):
        assert session.plan.pruned == {1, 2}
        assert session.imatrix is not None
        assert session.imatrix.path == imatrix
        imatrix.rename(away)
    async with session_with(None) as (session, _, pilot):
        await pilot.press("u")
        assert kept_recipe(session).plan == Plan(), "undone with the rest"


def test_a_second_session_is_told_so_also_with_a_recipe(model_copy: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    save_recipe(Recipe(Plan("Q4_K_M")), recipe)
    first, second = (open_session(model_copy, None, recipe) for _ in range(2))
    assert first.greeting.startswith("recipe small.toml")
    assert second.greeting.startswith("another surgeon has this model open")
    assert second.greeting.endswith(first.greeting)
    for one in (first, second):
        assert one.plan_file is not None
        one.plan_file.release()


async def test_palette_knows_every_action(session: Session) -> None:
    async with opened(session) as (app, _):
        for action in ACTIONS:
            name = action.action.partition("(")[0]
            assert callable(getattr(app.main, f"action_{name}", None)), action.id
        assert isinstance(app.main, MainScreen)


async def test_statistics_left_for_later_come_after_the_first_paint(model_copy: Path, demo_imatrix: Path) -> None:
    session = open_session(model_copy, demo_imatrix, None, measure_later=True).session
    assert session.coverage is not None
    assert not session.measurements.tensors
    async with opened(session) as (app, pilot):
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert session.measurements.of_tensor(METRICS["sum"], "blk.3.attn_v.weight") is not None
        assert session.shares_input("blk.3.attn_v.weight") == ("attn_k", "attn_q")


async def test_what_is_not_drawn_again_was_right(session: Session) -> None:
    """After every key the tree is what drawing all of it anew makes."""
    async with opened(session) as (app, pilot):
        tree_view = app.main.tree_
        whole = Region(0, 0, *tree_view.size)
        for key in "z J p j space u space k p m enter ctrl+f p U z u u".split():
            await pilot.press(key)
            await pilot.pause()
            drawn = tree_view.render_lines(whole)
            tree_view.refresh()
            assert tree_view.render_lines(whole) == drawn, key
