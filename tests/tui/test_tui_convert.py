"""A checkpoint chosen with `o` is converted behind the screen, once the user agrees."""

# ruff: noqa: F811 - fixtures of another file are named as what tests take
from __future__ import annotations

from pathlib import Path

import pytest
from test_conversion import checkpoint, stand_in  # noqa: F401 - fixtures
from tui_helpers import opened, session_of

from surgeon.tui.actions.file import file_or_checkpoint


@pytest.mark.usefixtures("stand_in")
async def test_a_checkpoint_is_converted_after_a_question(demo_model: Path, checkpoint: Path) -> None:
    target = checkpoint.with_name("Toy-1M-BF16.gguf")
    assert file_or_checkpoint(str(checkpoint))[0]
    assert not file_or_checkpoint(str(checkpoint.parent))[0]
    async with opened(session_of(demo_model)) as (app, pilot):
        app.main.apply_recipe(str(checkpoint))
        await pilot.pause()
        await pilot.press("n")
        await pilot.pause()
        assert not target.exists()
        app.main.apply_recipe(str(checkpoint))
        await pilot.pause()
        await pilot.press("y")
        for _ in range(100):
            await pilot.pause(0.1)
            if app.main.measure_job is not None and not app.main.measure_job.running:
                break
        assert app.main.measure_job is not None
        assert app.main.measure_job.failure == ""
        assert target.read_bytes()[:4] == b"GGUF"
        await pilot.press("enter")
        app.main.apply_recipe(str(checkpoint))
        await pilot.pause()
        assert "already exists" in app.main.message


async def test_without_the_converter_the_line_says_how_to_get_it(
    demo_model: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("surgeon.write.conversion.PACKAGE", "no_such_converter")
    async with opened(session_of(demo_model)) as (app, pilot):
        app.main.apply_recipe(str(checkpoint))
        await pilot.pause()
        assert "pip install 'gguf-surgeon[convert]'" in app.main.message
