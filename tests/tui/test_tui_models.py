"""Two models open at once: each has its plan, and they are compared."""

from __future__ import annotations

from pathlib import Path

from test_tui_keys import Screen, kept
from tui_helpers import opened, session_of

from surgeon import figures
from surgeon.commands import quantize
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.views.difference import DifferenceReader
from surgeon.tui.dialogs.views.map import MapDialog
from surgeon.tui.drawing.spans import plain
from surgeon.tui.opening import open_session


def other_of(model: Path) -> Path:
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    return other


async def test_each_has_its_plan_and_view(model_copy: Path) -> None:
    first, second = (open_session(path, None, None) for path in (model_copy, other_of(model_copy)))
    app = SurgeonApp(first.session, Config(), plan_file=first.plan_file, persistent=False, others=[second])
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("J", "p", "ctrl+t")
        assert app.session is second.session
        assert app.screen is app.mains[1]
        await pilot.press("J", "J", "p")
        assert (first.session.plan.pruned, second.session.plan.pruned) == ({1}, {2})
        await pilot.press("C")
        assert isinstance(app.screen, Prompt)
        assert app.screen.entry.value == str(model_copy), "the other one is at hand"
        await pilot.press("escape", "ctrl+t")
        assert app.screen is app.mains[0]
        assert app.main.row is not None
        assert app.main.row.layer == 1, "the cursor is where it was"
        assert next(iter(app.main.bases())) == "other.gguf"
        await pilot.press("u")
        assert first.session.plan.pruned == set()
        assert second.session.plan.pruned == {2}
    for one in (first, second):
        assert one.plan_file is not None
        one.plan_file.release()


async def test_a_comparison_leads_to_the_map_and_takes_types_over(model_copy: Path, tmp_path: Path) -> None:
    other, session = tmp_path / "theirs.gguf", session_of(model_copy)
    assert quantize.main([str(model_copy), str(other), "Q8_0"]) == 0
    async with opened(session, (80, 24)) as (app, pilot):
        for key in ("M", "o"):
            await pilot.press("C")
            assert isinstance(app.screen, Prompt)
            app.screen.entry.value = str(other)
            await pilot.press("enter")
            assert isinstance(app.screen, DifferenceReader)
            for file in (model_copy, other):
                sized = f"{file}  {figures.size(file.stat().st_size)}"
                about = "\n".join(map(plain, app.screen.lines(500)))
                assert sized in about, "the size that the file has, as the header says it"
            await pilot.press(key)
            if key == "M":
                assert isinstance(app.screen, MapDialog)
                assert (app.screen.state.view.key, app.screen.state.base_name) == ("change", "theirs.gguf")
                await pilot.press("escape")
        assert app.screen is app.main
        assert session.ops["blk.3.ffn_down.weight"].to_type == "Q8_0"


def test_both_plans_are_kept(model_copy: Path) -> None:
    other = other_of(model_copy)
    screen = Screen(model_copy, other)
    screen.write("3Gp\x144Gpq")
    assert screen.end() == 0
    assert (kept(model_copy).pruned, kept(other).pruned) == ({3}, {4})
