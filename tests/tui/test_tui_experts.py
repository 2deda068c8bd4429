"""The view of experts × layers: binning, marks, the least salient, undo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experts as toys
from textual.containers import Vertical
from tui_helpers import opened, session_of, typed

from surgeon.errors import SurgeonError
from surgeon.folders import state_folder
from surgeon.gguf.identity import model_identity
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, save
from surgeon.plan.plan import expert_sets_id
from surgeon.session.experts.filters import parse_expert_filter
from surgeon.session.experts.grid import Grid, grid, number_pruned, prune_least, shown_sets, toggle, with_plan
from surgeon.session.experts.table import table
from surgeon.session.session import Session
from surgeon.session.typed_edits import parse_command
from surgeon.tui.dialogs.views.experts import Experts
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.spans import plain
from surgeon.tui.jobs.writing import default_output


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Three layers of sixteen experts, salient by their number; expert 5 of layer 1 was never called."""
    model = toys.mixtral().write(tmp_path / "moe.gguf")
    calls = np.full((3, 16), 4.0)
    saliency = calls * np.arange(1, 17)
    calls[1, 5] = saliency[1, 5] = 0
    entries = {"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 64), np.float32), np.array([64]))}
    imatrix = Imatrix(tmp_path / "im.gguf", entries, ("text",), 1, 64)
    save(imatrix, Influence(np.ones((3, 5)), experts=ExpertSums(calls, calls / 8, saliency)), imatrix.path)
    return session_of(model, imatrix.path)


def shown(session: Session, columns: int, rows: int, **settings: Any) -> Grid:
    return grid(table(session, "saliency", **settings), session.plan, columns, rows)


def test_cells_are_as_many_as_fit(session: Session) -> None:
    whole = shown(session, 80, 24)
    assert (*whole.shape, whole.experts_per_column) == (3, 16, 1)
    assert whole.levels[0] == pytest.approx(np.arange(16) / 15)
    assert whole.idle[1].tolist() == [0] * 5 + [1] + [0] * 10
    coarse = shown(session, 5, 2)
    assert (coarse.layers_per_row, coarse.experts_per_column) == (2, 4)
    assert coarse.cell(1, 3).sets == {2: (12, 13, 14, 15)}
    assert coarse.cell(0, 1).sets == {0: (4, 5, 6, 7), 1: (4, 5, 6, 7)}
    assert coarse.levels[1, 0] == pytest.approx(np.arange(4).mean() / 15)
    assert shown(session, 7, 3).cell(0, 5).sets == {0: (15,)}


def test_marks_and_the_least_salient(session: Session) -> None:
    assert prune_least(session, "25%") == "prune experts: 25% by saliency"
    assert dict(session.plan.pruned_experts) == {0: (0, 1, 2, 3), 1: (0, 1, 2, 5), 2: (0, 1, 2, 3)}
    assert number_pruned(session) == {4}
    assert session.summary(0).bpw == 32  # of the weights that stay
    cell = shown(session, 80, 24).cell(0, 15)
    assert toggle(session, cell.sets) == "prune 1 expert"
    assert number_pruned(session) == {4, 5}
    assert "the layers lose different numbers of experts" in session.resolution.errors[0].text
    assert session.undo() == "prune 1 expert"
    assert session.resolution.errors == ()
    prune_least(session, "0")
    assert session.plan.pruned_experts == ()
    assert parse_command("experts 2 calls", session).plan.pruned_experts == ((0, (14, 15)), (1, (5, 15)), (2, (14, 15)))
    with pytest.raises(SurgeonError, match="write experts 25%"):
        parse_command("--prune-experts 25%", session)


def test_cells_follow_the_plan_and_undo_resolves_nothing_anew(session: Session) -> None:
    before, unpruned = shown(session, 5, 2), session.resolution
    prune_least(session, "25%")
    followed, anew = with_plan(before, session.plan), shown(session, 5, 2)
    assert followed.pruned.tolist() == anew.pruned.tolist() != before.pruned.tolist()
    assert followed.shown.tolist() == anew.shown.tolist()
    pruned = session.resolution
    assert session.undo() is not None
    assert session.resolution is unpruned
    assert session.redo() is not None
    assert session.resolution is pruned
    session.imatrices[str(session.plan.imatrix_file)] = load_imatrix(Path(str(session.plan.imatrix_file)))
    session.undo()
    assert session.resolution is not unpruned, "another imatrix, collected anew under the same name"


def test_sorted_by_the_figure(session: Session) -> None:
    """The never called one comes first; shades are shares of the layer's highest."""
    by_figure = shown(session, 80, 24, order="figure")
    assert by_figure.cell(1, 0).sets == {1: (5,)}
    assert by_figure.levels[0] == pytest.approx(np.arange(1, 17) / 16)
    assert by_figure.levels[1, 0] == 0
    prune_least(session, "2")
    assert shown(session, 80, 24, order="figure").pruned[:, :3].tolist() == [[1, 1, 0]] * 3
    by_damage = shown(session, 80, 24, order="layers", damages={0: 0.3, 1: 0.1, 2: 0.2})
    assert by_damage.table.layers == (1, 2, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("is:idle", {1: (5,)}),
        ("saliency>=15 layer<=1", {0: (14, 15), 1: (14, 15)}),
        ("expert<2 layer=2", {2: (0, 1)}),
        ("calls<5 expert=7", {0: (7,), 1: (7,), 2: (7,)}),
        ("calls<6.3% layer<2 expert>13", {0: (14, 15)}),  # of 16; in layer 1 only 15 were called
        ("weight>6.5% expert=0", {1: (0,)}),
        ("place<10% layer=0", {0: (0, 1)}),
        ("is:pruned", {0: (3,)}),
        ("!is:pruned layer=0 expert<5", {0: (0, 1, 2, 4)}),
    ],
)
def test_filters(session: Session, text: str, expected: dict[int, tuple[int, ...]]) -> None:
    toggle(session, {0: (3,)})
    found = table(session, "saliency", wanted=parse_expert_filter(text))
    assert shown_sets(found) == expected
    assert grid(found, session.plan, 4, 2).shown.sum() == sum(map(len, expected.values()))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("size>3", "write terms such as"),
        ("weight<3", "weight<1%"),
        ("saliency<3%", "leave out the %"),
        ("is:dead", "write terms such as"),
    ],
)
def test_filters_that_mean_nothing(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_expert_filter(text)
    assert parse_expert_filter("  ") is None


async def test_the_view(session: Session) -> None:
    async with opened(session, (80, 24)) as (app, pilot):
        await pilot.press("X")
        await pilot.pause()
        dialog = app.screen
        assert isinstance(dialog, Experts)

        def lines() -> list[str]:
            return [plain(line) for line in dialog.query_one(Canvas).lines]

        before = session.resolution.total_bytes
        assert lines()[0].startswith("saliency")
        assert (" ", "map-here") in dialog.query_one(Canvas).lines[1]  # the cursor is on the least salient of layer 0
        assert "× pruned" in lines()[-3]  # what the signs mean, where rows are free
        assert "…" not in lines()[-3]
        assert "Esc" in dialog.query_one(Vertical).border_subtitle
        assert lines()[2].count("0") == 1  # never called
        await pilot.press("plus", "plus")
        assert number_pruned(session) == {2}
        assert lines()[1].startswith("    0 ××")
        assert "2 of 16 pruned in every layer" in lines()[-1]
        assert "-pruned-2-experts-" in default_output(session.resolution).name
        await pilot.press("down", "right", "right", "right", "space")
        assert dict(session.plan.pruned_experts)[1] == (0, 3, 5)
        assert "2 to 3 of 16 pruned: every layer must lose as many" in lines()[-1]
        await pilot.press("u", "v", "z", "minus")
        assert number_pruned(session) == {1}
        assert session.resolution.total_bytes < before
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen is app.main


async def test_sort_filter_and_prune_what_is_shown(session: Session) -> None:
    async with opened(session, (80, 24)) as (app, pilot):
        await pilot.press("X")
        await pilot.pause()
        dialog = app.screen
        assert isinstance(dialog, Experts)

        def lines() -> list[str]:
            return [plain(line) for line in dialog.query_one(Canvas).lines]

        await pilot.press("a")
        assert "/ filters first" in lines()[-1]
        await typed(pilot, "/place<10%")
        await pilot.press("enter")
        await pilot.pause()
        assert "6 experts with place<10%" in lines()[0]
        assert lines()[1].endswith("·" * 14)
        await pilot.press("a")
        assert dict(session.plan.pruned_experts) == {0: (0, 1), 1: (0, 5), 2: (0, 1)}
        await pilot.press("s")
        assert lines()[2] == "    1 ××" + "·" * 14
        await pilot.press("a")
        assert session.plan.pruned_experts == ()
        await typed(pilot, "/")
        await pilot.press(*["backspace"] * 9, *"calls>9", "enter")
        await pilot.pause()
        assert "no expert: calls>9" in lines()[1]
        await pilot.press("down", "space", "z", "escape")
        await pilot.pause()
        assert app.screen is app.main


async def test_the_curve_of_a_scan(session: Session) -> None:
    """What expert-scan keeps is drawn; a plan whose experts it silenced has its figure."""
    prune_least(session, "25%")
    sets = dict(session.plan.pruned_experts)
    damage = {"number": 0, "mean_kld": 0.25, "mean_kld_error": 0.01, "ppl": 9.0, "same_top": 0.75}
    kept = {
        "identity": "x",
        "damages": {expert_sets_id(sets): damage, "half": damage | {"mean_kld": 0.5}, "one": damage},
        "cuts": [[expert_sets_id(sets), 25, -1, "saliency"], ["half", 50, -1, "saliency"], ["one", 25, 1, "saliency"]],
    }
    folder = state_folder() / "expert-scan"
    folder.mkdir(parents=True)
    (folder / f"{model_identity(session.model.file.path)}-x-c512-n8.json").write_text(json.dumps(kept))
    async with opened(session, (80, 24)) as (app, pilot):
        await pilot.press("X")
        await pilot.pause()
        dialog = app.screen
        assert isinstance(dialog, Experts)
        await pilot.pause()
        assert "KLD .250 ±.0100" in plain(dialog.query_one(Canvas).lines[-1])
        await pilot.press("c")
        text = "\n".join(plain(line) for line in dialog.query_one(Canvas).lines)
        assert "50%   KLD 0.5000 ± 0.0100" in text
        assert "the plan, 25%: KLD 0.2500 ± 0.0100, measured" in text
        assert "each layer alone, 25%" in text
        await pilot.press("c", "plus")
        assert "KLD" not in plain(dialog.query_one(Canvas).lines[-1])
        await pilot.press("c")
        text = "\n".join(plain(line) for line in dialog.query_one(Canvas).lines)
        assert "not measured as it is; the curve there: 0.2500 to 0.5000" in text


async def test_a_model_without_experts_says_so(demo_model: Path, demo_imatrix: Path) -> None:
    session = session_of(demo_model, demo_imatrix)
    async with opened(session) as (app, pilot):
        await pilot.press("X")
        await pilot.pause()
        assert app.screen is app.main
        assert "no experts" in app.main.message
        await typed(pilot, ":experts 25%")
        await pilot.press("enter")
        await pilot.pause()
        assert session.plan.pruned_experts == ()


def test_columns_of_layers(session: Session) -> None:
    figures = session.measurements.of_layers
    assert figures["idle"] == {0: 0, 1: 1, 2: 0}
    assert figures["low"] == pytest.approx({0: 0.25, 1: 3 / 15, 2: 0.25})
