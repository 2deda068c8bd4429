"""The view of experts × layers: binning, marks, the least salient, undo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy_experts as toys
from tui_helpers import opened, session_of, typed

from surgeon.errors import SurgeonError
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, save
from surgeon.session.experts import grid, number_pruned, prune_least, toggle
from surgeon.session.session import Session
from surgeon.session.typed_edits import parse_command
from surgeon.tui.dialogs.experts import Experts
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.spans import plain


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


def test_cells_are_as_many_as_fit(session: Session) -> None:
    whole = grid(session, "saliency", 80, 24)
    assert (len(whole.rows), len(whole.rows[0]), whole.experts_per_column) == (3, 16, 1)
    assert [cell.level for cell in whole.rows[0]] == pytest.approx(np.arange(16) / 15)
    assert [cell.idle for cell in whole.rows[1]] == [0] * 5 + [1] + [0] * 10
    coarse = grid(session, "saliency", 5, 2)
    assert (coarse.layers_per_row, coarse.experts_per_column) == (2, 4)
    assert [(cell.layers, list(cell.experts)) for cell in coarse.rows[1]][-1] == ((2,), [12, 13, 14, 15])
    assert coarse.rows[1][0].level == pytest.approx(np.arange(4).mean() / 15)
    assert grid(session, "saliency", 7, 3).rows[0][-1].experts == range(15, 16)


def test_marks_and_the_least_salient(session: Session) -> None:
    assert prune_least(session, "25%") == "prune experts: 25% by saliency"
    assert dict(session.plan.pruned_experts) == {0: (0, 1, 2, 3), 1: (0, 1, 2, 5), 2: (0, 1, 2, 3)}
    assert number_pruned(session) == {4}
    cell = grid(session, "saliency", 80, 24).rows[0][15]
    assert toggle(session, cell) == "prune 1 experts"
    assert number_pruned(session) == {4, 5}
    assert "the layers lose different numbers of experts" in session.resolution.errors[0].text
    assert session.undo() == "prune 1 experts"
    assert session.resolution.errors == ()
    prune_least(session, "0")
    assert session.plan.pruned_experts == ()
    assert parse_command("experts 2 calls", session).plan.pruned_experts == ((0, (14, 15)), (1, (5, 15)), (2, (14, 15)))
    with pytest.raises(SurgeonError, match="write experts 25%"):
        parse_command("--prune-experts 25%", session)


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
        assert lines()[1][6:].startswith("_")  # the cursor is on the least salient of layer 0
        assert lines()[2].count("0") == 1  # never called
        await pilot.press("plus", "plus")
        assert number_pruned(session) == {2}
        assert lines()[1].startswith("    0 ××")
        assert "2 of 16 pruned in every layer" in lines()[-1]
        await pilot.press("down", "right", "right", "right", "space")
        assert dict(session.plan.pruned_experts)[1] == (0, 3, 5)
        assert "2 to 3 of 16 pruned: every layer must lose as many" in lines()[-1]
        await pilot.press("u", "v", "z", "minus")
        assert number_pruned(session) == {1}
        assert session.resolution.total_bytes < before
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen is app.main


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
