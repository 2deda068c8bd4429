"""Second moments on the screen: found beside the imatrix, shown, used for writes, taken back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from moments_toy import HEAD, Toy, toy_moments
from test_tui_measure import TEXT, answer, ran, until
from tui_helpers import opened, session_of, text_of

from surgeon.engine.protocol import Engine, Swap
from surgeon.errors import Cancelled, SurgeonError
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.probes import FleetProber
from surgeon.gguf.identity import model_identity
from surgeon.measure.base_cache import Base
from surgeon.measure.fitting.ladder import Ladder, Rung
from surgeon.measure.probing import Place, Prober
from surgeon.measure.speeds import Speeds
from surgeon.moments import account
from surgeon.moments.files import beside, load_moments
from surgeon.plan.plan import Plan, with_file_type
from surgeon.plan.recipe import read_recipe
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.session.candidates import measured_losses
from surgeon.session.error_child import sample_rows
from surgeon.session.kept_plans import recipe_of, use_recipe
from surgeon.session.typed_edits import parse_command
from surgeon.trials.journal import Journal
from surgeon.trials.records import is_unchanged, recipe_text
from surgeon.tui.dialogs.forms.form import Form
from surgeon.tui.dialogs.forms.measure_forms import Ground, check_collection
from surgeon.tui.dialogs.forms.write import WriteDialog, encoder_lines
from surgeon.tui.dialogs.lists.type_picker import TypePicker
from surgeon.tui.drawing.spans import plain
from surgeon.tui.jobs.writing import WriteJob, default_output
from surgeon.tui.unfinished import job_of, note, unfinished
from surgeon.write.operation import WriteOptions
from surgeon_kernels import dequantize, quantize


@pytest.fixture
def model(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> Path:
    """A copy of the bundled model, its imatrix, and second moments of two inputs beside that."""
    for source, name in ((demo_model, "model-F16.gguf"), (demo_imatrix, "model.imatrix.gguf")):
        shutil.copyfile(source, tmp_path / name)
    rows = np.random.default_rng(0).standard_normal((5000, 256)).astype(np.float32)
    toy = Toy({"blk.0.attn_q.weight": rows, "blk.1.attn_output.weight": rows[:4500]})
    toy.users |= {f"blk.0.attn_{name}.weight": "blk.0.attn_q.weight" for name in "kv"}
    head = replace(HEAD, model=model_identity(tmp_path / "model-F16.gguf"))
    toy_moments(tmp_path / "model.imatrix.moments.gguf", toy, head)
    return tmp_path / "model-F16.gguf"


def test_moments_beside_the_imatrix_are_found_and_can_be_taken_back(model: Path) -> None:
    session = session_of(model)
    said = session.use_imatrix(model.with_name("model.imatrix.gguf"))
    session.change(with_file_type(session.plan, "Q4_0"), "base type")
    assert "second moments model.imatrix.moments.gguf" in said
    assert session.moments is not None
    assert sorted(op.source for op in session.resolution.with_feedback) == [
        "blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight",
    ]  # fmt: skip
    assert default_output(session.resolution).name == "model-Q4_0-feedback.gguf"
    (line,) = encoder_lines(session.resolution)
    assert plain(line).startswith("feedback encoder: 4 of 86 tensors, about ")
    session.undo()
    session.undo()
    assert session.moments is None
    assert session.imatrix is not None
    assert encoder_lines(session.resolution) == []
    assert not is_unchanged(with_file_type(Plan(), "Q4_0"))
    assert is_unchanged(session.plan)


def test_errors_of_both_encoders_are_those_of_the_output(model: Path) -> None:
    """e H e' over w H w', by the formula; of a scope the losses are added up before they are divided."""
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((5000, 256)) @ rng.standard_normal((256, 256))).astype(np.float32)
    toy = Toy({"blk.0.attn_q.weight": rows, "blk.1.attn_output.weight": rows[:4500]})
    toy_moments(model.with_name("other.moments.gguf"), toy, replace(HEAD, model=model_identity(model)))
    session = session_of(model, model.with_name("other.moments.gguf"))
    assert session.moments is not None
    names = ["blk.0.attn_q.weight", "blk.1.attn_output.weight"]
    sums = []
    for name in names:
        h = session.moments.blocks(session.moments.inputs[name])[0].astype(np.float64)
        tensor = next(one for one in session.model.tensors if one.name == name)
        weights = sample_rows(session.model, tensor, 1 << 20)
        restored = dequantize(quantize(weights, "Q4_0", session.moments.as_imatrix.weights(name)), "Q4_0")
        e, w = (weights - restored).astype(np.float64), weights.astype(np.float64)
        sums.append([np.sum((e @ h) * e), np.sum((w @ h) * w)])
    for some in ([0], [0, 1]):
        found = measured_losses(session, [names[n] for n in some], ["F16", "Q4_0"], threading.Event())
        lost = {kind: value for kind, value in found if value is not None}
        loss, energy = (sum(sums[n][part] for n in some) for part in (0, 1))
        assert lost["Q4_0"].stock == pytest.approx(np.sqrt(loss / energy), rel=1e-3)
        assert lost["Q4_0"].feedback < 0.8 * lost["Q4_0"].stock
        assert lost["F16"].feedback == lost["F16"].stock


async def test_the_type_picker_shows_both_encoders(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.tui.dialogs.lists.type_picker.TYPES", ("F16", "Q8_0", "Q4_0"))
    async with opened(session_of(model, model.with_name("model.imatrix.gguf")), (100, 30)) as (app, pilot):
        await pilot.press("l", "j", "t")
        picker = app.screen
        assert isinstance(picker, TypePicker)
        await until(pilot, lambda: len(picker.losses) == 3)
        assert "stock  feedback" in plain([(str(picker.query_one("#heads").render()), "")])
        lost = picker.losses["Q4_0"]
        assert plain(picker.line("Q4_0")).rstrip().endswith(f"{lost.stock:.4f}  {lost.feedback:.4f}")


def test_a_plan_is_restored_with_its_encoder(model: Path) -> None:
    session = session_of(model, model.with_name("model.imatrix.gguf"))
    session.set_file_type("Q4_0")
    recipe = recipe_of(session)
    assert recipe.moments == str(model.with_name("model.imatrix.moments.gguf"))
    assert session.moments is not None
    assert recipe.moments_digest == session.moments.digest
    text = recipe_text(session.plan, session.imatrix, session.moments)
    assert f'digest = "{session.moments.digest}"' in text
    other = session_of(model)
    assert use_recipe(other, recipe, "restored") == "restored"
    assert other.resolution.with_feedback == session.resolution.with_feedback
    Path(recipe.moments).unlink()
    assert "without its second moments" in use_recipe(session_of(model), recipe, "restored")


def test_a_write_with_the_feedback_encoder_is_resumed_with_it(model: Path, tmp_path: Path) -> None:
    session = session_of(model, model.with_name("model.imatrix.gguf"))
    session.change(with_file_type(session.plan, "Q4_0"), "base type")
    written = WriteJob(session.resolution, session.imatrix, tmp_path / "out.gguf", WriteOptions())
    assert note(written) == ""
    written.resume_log.touch()
    kept = unfinished(model)
    assert kept is not None
    job = job_of(kept, session_of(model))
    assert len(session.resolution.with_feedback) == 4
    assert [op.source for op in job.resolution.with_feedback] == [op.source for op in written.resolution.with_feedback]


def test_rungs_with_and_without_the_feedback_encoder_are_two_rows(model: Path, tmp_path: Path) -> None:
    session = session_of(model, model.with_name("model.imatrix.gguf"))
    session.change(with_file_type(session.plan, "Q4_0"), "base type")
    assert session.moments is not None
    ladder = Ladder(Prober(session.model, session.imatrix, Engine()), Journal(tmp_path / "rungs.jsonl"), ())
    stock = resolve(session.model, replace(session.plan, moments_file=None), session.imatrix)
    recipes = [read_recipe(ladder.recipe(Rung("4 bpw", one)), Path("/")) for one in (session.resolution, stock)]
    assert [one.moments for one in recipes] == [str(session.moments.path), None]


def test_workers_measure_a_plan_with_its_own_encoder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both encoders in one run, as `surgeon fit --held-out` asks for them; every task gets its plan's."""
    session = session_of(model, model.with_name("model.imatrix.gguf"))
    session.change(with_file_type(session.plan, "Q4_0"), "base type")
    stock = resolve(session.model, replace(session.plan, moments_file=None), session.imatrix)
    wanted = {"feedback": session.resolution, "stock": stock}
    made: list[int] = []

    class Watched(Prober):
        def swaps(self, plan: Resolution) -> list[Swap]:
            made.append(len(plan.with_feedback))
            raise Cancelled("far enough")

    class Workers:
        build, title, cancelled = "some", "1 worker", threading.Event()

        def each(self, task: Any, calls: dict[str, tuple[Any, ...]], _: object) -> Iterator[Any]:
            for arguments in calls.values():
                with pytest.raises(Cancelled):
                    task(SimpleNamespace(engine=Engine(), cancelled=self.cancelled), *arguments)
            return iter(())

    monkeypatch.setattr("surgeon.fleet.probes._base", lambda *_: None)
    monkeypatch.setattr("surgeon.fleet.probes.Prober", Watched)
    prober = FleetProber.of(Prober(session.model, session.imatrix, Engine(), session.moments), cast(Fleet, Workers()))
    list(prober.probe(Base(model, TEXT, 64, 1, "some", model.parent), wanted, "", Place()))
    assert made == [4, 0]


def test_a_damaged_file_beside_is_told_not_fatal(model: Path) -> None:
    model.with_name("model.imatrix.moments.gguf").write_bytes(b"GGUF rubbish")
    session = session_of(model)
    assert "cannot be used" in session.use_imatrix(model.with_name("model.imatrix.gguf"))
    assert session.moments is None
    assert session.imatrix is not None


def test_i_takes_a_file_of_moments_for_both(model: Path) -> None:
    session = session_of(model, model.with_name("model.imatrix.moments.gguf"))
    assert session.imatrix is not None
    assert set(session.imatrix.entries) == {f"blk.0.attn_{name}.weight" for name in "qkv"} | {
        "blk.1.attn_output.weight"
    }
    assert session.moments is not None
    with pytest.raises(SurgeonError, match="i loads second moments"):
        parse_command("--moments x.gguf", session)


def test_names_beside(tmp_path: Path) -> None:
    assert beside(tmp_path / "a.gguf").name == "a.moments.gguf"
    assert beside(tmp_path / "a.imatrix.dat").name == "a.imatrix.moments.gguf"
    (tmp_path / "a.moments.gguf").touch()
    assert beside(tmp_path / "a.imatrix.gguf").name == "a.moments.gguf"


async def test_the_header_and_the_write_dialog_say_so(model: Path) -> None:
    session = session_of(model, model.with_name("model.imatrix.gguf"))
    session.set_file_type("Q4_0")
    async with opened(session, (120, 30)) as (app, pilot):
        assert "+ moments" in text_of(app, "header")
        await pilot.press("w")
        assert isinstance(app.screen, WriteDialog)
        assert app.screen.out.name == "model-Q4_0-feedback.gguf"


async def test_collecting_moments_uses_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.imatrix.gguf", "model.imatrix.moments.gguf"):
        model.with_name(name).unlink()
    session, out = session_of(model), model.with_name("mine.gguf")
    async with opened(session, (150, 40)) as (app, pilot):
        await pilot.press("I")
        form = app.screen
        assert isinstance(form, Form)
        await answer(app, pilot, out=str(out), text=str(TEXT), chunks="4", context="64", how="moments")
        job = await ran(app, pilot)
        assert job.failure == ""
        assert len(load_moments(model.with_name("mine.moments.gguf")).inputs) == 49
        assert session.moments is not None
    answers = {"text": str(TEXT), "out": str(out), "chunks": "4", "context": "64", "how": "moments"}
    ground = Ground(Engine(), model.parent, Speeds())
    good, lines = check_collection(answers, session.model, ground)
    assert good
    assert any("second moments of 49 inputs: " in plain(line) for line in lines)
    monkeypatch.setattr(account, "available_memory", lambda: 1 << 20)
    good, lines = check_collection(answers, session.model, ground)
    assert not good
    assert any("are free" in plain(line) for line in lines)


def test_a_plan_whose_imatrix_is_a_file_of_moments_is_restored(model: Path) -> None:
    session = session_of(model, model.with_name("model.imatrix.moments.gguf"))
    session.set_file_type("Q4_0")
    other = session_of(model)
    assert use_recipe(other, recipe_of(session), "restored") == "restored"
    assert other.imatrix is not None
    assert other.resolution.with_feedback == session.resolution.with_feedback
