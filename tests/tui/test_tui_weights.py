"""W: the weights of the tensor under the cursor, read by a process of its own."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tui_helpers import opened, session_of

from surgeon.imatrix.experts import ExpertSums
from surgeon.session.rows import LayerRow
from surgeon.tui.dialogs.views.weights import WeightsReader, expert_lines
from surgeon.tui.drawing.spans import plain


async def test_weights_of_the_row(demo_model: Path) -> None:
    async with opened(session_of(demo_model)) as (app, pilot):
        main = app.main
        main.tree_.move(next(at for at, row in enumerate(main.tree_.rows) if not isinstance(row, LayerRow)))
        assert main.row is not None
        await pilot.press("W")
        dialog = app.screen
        assert isinstance(dialog, WeightsReader)
        end = time.monotonic() + 60
        while dialog.note and time.monotonic() < end:
            await pilot.pause(0.05)
        assert main.row.name in dialog.shown
        assert "outliers, over 6 std from the mean" in dialog.shown
        assert "█" in dialog.shown
        await pilot.press("escape")
        assert app.screen is main


async def test_a_layer_has_none(demo_model: Path) -> None:
    async with opened(session_of(demo_model)) as (app, pilot):
        main = app.main
        main.tree_.move(next(at for at, row in enumerate(main.tree_.rows) if isinstance(row, LayerRow)))
        await pilot.press("W")
        assert app.screen is main
        assert "choose a tensor" in main.message


async def test_why_there_is_nothing_is_said(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.session.child_process.sys.executable", "/bin/false")
    session = session_of(demo_model)
    async with opened(session) as (app, pilot):
        app.push_screen(WeightsReader(session.model, "output_norm.weight", []))
        await pilot.pause()
        dialog = app.screen
        assert isinstance(dialog, WeightsReader)
        end = time.monotonic() + 60
        while not dialog.note.startswith("output_norm.weight:") and time.monotonic() < end:
            await pilot.pause(0.05)
        assert "cannot be measured" in dialog.shown


def test_most_and_least_used_experts() -> None:
    calls = np.array([[50.0, 0, 30, 20, 0]])
    sums = ExpertSums(calls, calls, calls)
    lines = [plain(line) for line in expert_lines(sums, 0, "ffn_down_exps")]
    assert lines[1].startswith("most used experts   0 (50% of calls)  2 (30% of calls)")
    assert lines[2].startswith("least used experts  4 (0% of calls)  1 (0% of calls)  3 (20% of calls)")
    assert lines[3] == "never called        2 of 5"
    assert expert_lines(sums, 0, "attn_q") == []
