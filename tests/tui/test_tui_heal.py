"""H on the screen: a heal file becomes part of the plan, and leaves it with undo or other prune marks."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from tui_helpers import opened, session_of, text_of

from surgeon.engine.protocol import HealedMatrix
from surgeon.errors import UsageError
from surgeon.gguf.identity import model_identity
from surgeon.gguf.layout import Entry
from surgeon.healing.heal_file import HeldOut, NewTensor, Origin, Refit, load_heal, save_heal
from surgeon.measure.healing.heal_run import HealRun
from surgeon.measure.progress import Standing
from surgeon.session.kept_plans import recipe_of
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.dialogs.forms.form import Form
from surgeon.tui.dialogs.forms.heal_form import default_file, request_of
from surgeon.tui.dialogs.running.measuring import MeasureDialog
from surgeon.tui.jobs.writing import default_output
from surgeon_kernels.formats import FORMATS

NAME = "blk.8.ffn_down.weight"


def made_at_once(run: HealRun) -> Iterator[Standing | HealedMatrix]:
    """In the place of a run of the engine: one matrix of zeros."""
    request = run.request
    yield Standing("healing", part=0.5)
    yield HealedMatrix(8, "ffn_down", "ridge", 0.1, 1.0, 0.5, 0.2, {})
    source = request.model.file.paths[0]
    run.origin = Origin(
        source.name, model_identity(source), request.pruned, ("text.txt",), ("0",), (4,), 64, 256,
        (Refit(NAME, "ridge", 0.1, 1.0, 0.5, 0.2),), (HeldOut("other.txt", 0.2, 0.1),),
    )  # fmt: skip
    zeros = np.zeros((256, 768), np.float32)
    tensor = NewTensor(Entry(NAME, (768, 256), FORMATS["F32"].number, zeros.nbytes), lambda: [zeros.tobytes()])
    save_heal(request.out, "llama", run.origin, [tensor])


@pytest.fixture
def session(model_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    monkeypatch.setattr("surgeon.folders.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(HealRun, "steps", made_at_once)
    return session_of(model_copy)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(1).choices("abc ", k=5000)))
    return path


async def heal(app: SurgeonApp, pilot: Pilot[int], text: Path) -> None:
    """Answer the form and wait for the end."""
    await pilot.press("H")
    form = app.screen
    assert isinstance(form, Form)
    form.query_one("#text").value = str(text)  # type: ignore[attr-defined]
    await pilot.pause()
    assert "a column" in form.answer
    await pilot.press("enter")
    end = time.monotonic() + 60
    while app.main.measure_job is None or app.main.measure_job.running:
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)
    await pilot.pause()


async def test_a_heal_becomes_part_of_the_plan_and_undo_takes_it_back(session: Session, text: Path) -> None:
    session.toggle_prune([9])
    before = session.plan
    async with opened(session, (120, 40)) as (app, pilot):
        await heal(app, pilot, text)
        assert isinstance(app.screen, MeasureDialog)
        await pilot.press("enter")
        assert session.plan.healing is not None
        assert session.ops[NAME].reason.startswith("healed: −60 % error")
        assert not session.resolution.errors
        assert default_output(session.resolution).name == "novels-12M-pruned-9-healed-copy.gguf"
        assert 'file = "' in Path(save(session)).read_text()
        await pilot.press("u")
        assert session.plan == before
        assert default_output(session.resolution).name == "novels-12M-pruned-9-copy.gguf", "not the healed one's"
        await pilot.press("ctrl+r")
        assert session.plan.healing is not None


def save(session: Session) -> Path:
    """The plan as a recipe, beside the model."""
    from surgeon.plan.recipe import load_recipe, save_recipe

    path = session.model.file.path.with_name("recipe.toml")
    save_recipe(recipe_of(session), path)
    assert load_recipe(path).plan.healing is not None
    return path


async def test_other_prune_marks_end_the_heal(session: Session, text: Path) -> None:
    session.toggle_prune([9])
    async with opened(session, (120, 40)) as (app, pilot):
        await heal(app, pilot, text)
        await pilot.press("enter")
        session.toggle_prune([3])
        assert session.plan.healing is None
        assert not session.resolution.errors
        await pilot.press("u")
        assert session.plan.healing is not None


async def test_marks_changed_while_it_ran_keep_the_file_only(session: Session, text: Path) -> None:
    session.toggle_prune([9])
    async with opened(session, (120, 40)) as (app, pilot):
        out = default_file(session)
        await heal(app, pilot, text)
        session.undo()
        assert load_heal(out).origin.pruned == {9}
        session.toggle_prune([3])
        app.main.healed(made(out))
        assert session.plan.healing is None
        assert "is for pruning 9, the plan has changed" in app.main.message


def made(out: Path):  # type: ignore[no-untyped-def]
    from surgeon.plan.plan import Healing
    from surgeon.tui.jobs.healing import HealMade

    heal = load_heal(out)
    return HealMade(Healing(str(out), heal.id), heal.origin.pruned, 1)


async def test_nothing_pruned_is_nothing_to_heal(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("H")
        assert "mark layers to prune first" in app.main.message
        assert text_of(app, "header")


def test_a_folder_is_not_a_text(session: Session, text: Path) -> None:
    session.toggle_prune([6])
    answers = {"text": f"{text},{text.parent}", "held_out": "", "tokens": "30", "context": "512", "out": "out.gguf"}
    with pytest.raises(UsageError, match="texts: is a folder: name a file in it"):
        request_of(session.model, session.plan, answers)
    answers |= {"text": str(text), "held_out": str(text.parent)}
    with pytest.raises(UsageError, match="held out: is a folder: name a file in it"):
        request_of(session.model, session.plan, answers)


async def test_several_texts_are_held_out_and_tab_completes_the_last(session: Session, text: Path) -> None:
    others = [text.with_name("other-one.txt"), text.with_name("other-two.txt")]
    for other in others:
        other.write_text(text.read_text() + "Another end.")
    session.toggle_prune([9])
    async with opened(session, (120, 40)) as (app, pilot):
        await pilot.press("H")
        form = app.screen
        assert isinstance(form, Form)
        form.query_one("#text").value = str(text)  # type: ignore[attr-defined]
        field = form.query_one("#held_out")
        field.focus()
        field.value = f"{others[0]}, {text.parent}/other-t"  # type: ignore[attr-defined]
        await pilot.press("end", "tab")
        assert field.value == f"{others[0]}, {others[1]}"  # type: ignore[attr-defined]
        form.query_one("#tokens").value = "4"  # type: ignore[attr-defined]
        await pilot.pause()
        request = request_of(session.model, session.plan, form.answers)
        assert request.held_out == tuple(others)


async def test_too_few_tokens_are_refused_before_anything_runs(session: Session, text: Path) -> None:
    session.toggle_prune([9])
    async with opened(session, (120, 40)) as (app, pilot):
        await pilot.press("H")
        form = app.screen
        assert isinstance(form, Form)
        for key, value in (("text", str(text)), ("tokens", "3")):
            form.query_one(f"#{key}").value = value  # type: ignore[attr-defined]
        await pilot.pause()
        assert form.answer == "tokens: at least 4 a column of ffn_down are needed, 30 are good"
        await pilot.press("enter")
        assert app.screen is form


async def test_a_text_that_is_both_fitted_and_held_out_is_refused(session: Session, text: Path) -> None:
    session.toggle_prune([9])
    async with opened(session, (120, 40)) as (app, pilot):
        await pilot.press("H")
        form = app.screen
        assert isinstance(form, Form)
        for key in ("text", "held_out"):
            form.query_one(f"#{key}").value = str(text)  # type: ignore[attr-defined]
        await pilot.pause()
        assert "is the text that is fitted" in form.answer
        await pilot.press("enter")
        assert app.main.measure_job is None
