"""The fit on the screen: a size becomes a plan, and every edit afterwards shows what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.pilot import Pilot
from tui_helpers import opened, session_of, text_of, typed

from surgeon.figures import divergence
from surgeon.fit.cost_model import CostModel, GroupProbes, Probe
from surgeon.fit.groups import groups_of
from surgeon.model.model import Model
from surgeon.session.candidates import TYPES as ALL_TYPES
from surgeon.session.session import Session
from surgeon.trials.journal import Journal, Measured, new_trial
from surgeon.tui.dialogs.forms.form import Form
from surgeon.tui.dialogs.lists.base_picker import BasePicker
from surgeon.tui.dialogs.lists.type_picker import TypePicker
from surgeon.tui.dialogs.views.fit import FitDialog
from surgeon.tui.drawing.spans import plain
from surgeon.tui.jobs.fitting import SensitivityJob
from surgeon_kernels.formats import FORMATS

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def made_up_costs(model: Model) -> CostModel:
    """Errors of 4^-bits; the head matters a hundred times as much as the rest."""
    groups = {group: tuple(facts.name for facts in members) for group, members in groups_of(model).items()}
    errors = {name: {kind: 4.0 ** -FORMATS[kind].bpw for kind in TYPES} for names in groups.values() for name in names}

    def probe(names: tuple[str, ...], kind: str, scale: float) -> Probe:
        return Probe(dict.fromkeys(names, kind), scale * sum(errors[name][kind] for name in names), 1e-6)

    scales = {group: 1.0 if group == "output" else 0.01 for group in groups}
    probes = {
        group: GroupProbes(probe(names, "Q2_K", scales[group]), probe(names, "Q4_K", scales[group]))
        for group, names in groups.items()
    }
    return CostModel(errors, groups, probes, None)


@pytest.fixture
def session(demo_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    session = session_of(demo_model)
    session.use_costs(made_up_costs(session.model))
    return session


async def test_a_typed_size_becomes_one_step_that_undo_takes_back(session: Session) -> None:
    before = session.plan
    async with opened(session) as (app, pilot):
        assert "KLD" not in text_of(app, "header")  # nothing is changed yet
        await pilot.press("F")
        assert isinstance(app.screen, FitDialog)
        await typed(pilot, "4.25")
        await pilot.press("enter")
        assert not isinstance(app.screen, FitDialog)
        assert 4.2 < session.resolution.bpw <= 4.25
        assert session.predicted is not None
        assert f"{session.predicted.kld:.4f}".removeprefix("0") in text_of(app, "header")
        assert "by hand" not in text_of(app, "header")
        await pilot.press("u")
        assert session.plan == before


async def test_plus_and_minus_step_the_size_and_escape_changes_nothing(session: Session) -> None:
    session.set_file_type("Q4_K_M")
    before = session.plan
    async with opened(session, (120, 40)) as (app, pilot):
        await pilot.press("F")
        dialog = app.screen
        assert isinstance(dialog, FitDialog)
        assert dialog.nbytes == session.resolution.total_bytes
        await pilot.press("minus", "minus")
        smaller = dialog.nbytes
        assert smaller < session.resolution.total_bytes
        await pilot.press("plus")
        assert dialog.nbytes > smaller
        await pilot.press("escape")
        assert session.plan == before


async def test_tab_shows_which_parts_are_fragile(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("F")
        shown = str(app.screen.query_one("#answer").render())
        assert "next best bytes" in shown
        assert "predicted KLD, logarithmic" in shown, "the curve has its place at 80×24, too; × means nothing yet"
        assert len(shown.splitlines()) <= 18
        await pilot.press("tab")
        lines = str(app.screen.query_one("#answer").render()).splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("fragile parts"))
        assert lines[start].split()[2:] == ["0-3", "4-7", "8-11", "at"]
        assert lines[start + 1].split()[0] == "output"  # a hundred times as fragile as the others
        assert lines[start + 1].split()[-1] == "Q2_K"
        assert all("██" in line for line in lines[start + 1 : start + 8])
        await pilot.press("tab", "escape")


async def test_trials_are_on_the_curve_where_there_are_some(session: Session) -> None:
    measured = Measured({"ppl": 60.0, "mean_kld": 0.05}, {"text": "a.txt", "n_chunks": 8, "n_ctx": 512})
    Journal.of_model(session.model.file.path).add(new_trial("q4", 7_000_000, 23_000_000, recipe="", measured=measured))
    async with opened(session) as (app, pilot):
        await pilot.press("F")
        shown = str(app.screen.query_one("#answer").render())
        assert "predicted KLD; × trials as measured, logarithmic" in shown
        assert shown.count("×") == 2, "the title and the trial"


async def test_the_mixes_about_the_fit_are_named_where_there_is_no_room_for_all(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("F")
        for size, near, far in (("3.9", "Q3_K_M", "Q8_0"), ("6.56", "Q6_K", "Q2_K"), ("3.5", "Q2_K", "Q8_0")):
            await pilot.press("ctrl+u")
            await typed(pilot, size)
            lines = str(app.screen.query_one("#answer").render()).splitlines()
            names = lines[lines.index("next best bytes") - 1]
            assert near in names.split(), names
            assert far not in names.split(), names
            assert len(names) <= 72


def test_the_most_fragile_parts_are_told_by_what_ranks_them(session: Session) -> None:
    prober = SimpleNamespace(model=session.model)
    job = SensitivityJob(SimpleNamespace(prober=prober, costs=lambda: session.costs))  # type: ignore[arg-type]
    first, *parts, last = map(plain, job.result())
    assert first == "measured 23 parts; the most fragile:"
    figures = [float(line.split("KLD ")[1].split()[0]) for line in parts]
    assert figures == sorted(figures, reverse=True)
    assert parts[0].startswith("output ")
    assert " weights at Q2_K" in parts[0]
    assert last == "F chooses a size"


async def test_an_edit_by_hand_says_what_it_costs(session: Session) -> None:
    session.set_file_type("Q4_K_S")
    before = session.predicted
    assert before is not None
    async with opened(session, (120, 40)) as (app, pilot):
        await pilot.press("slash")
        await typed(pilot, "blk.5.ffn_up")
        await pilot.press("enter", "t")
        await typed(pilot, "q2_k")
        await pilot.press("enter")
        after = session.predicted
        assert after is not None
        assert after.kld > before.kld
        assert f"KLD {divergence(after.kld)} (+{divergence(after.kld - before.kld)})" in app.main.message
        await pilot.press("m")
        picker = app.screen
        assert isinstance(picker, BasePicker)
        while "Q3_K_M" not in picker.found:
            await pilot.pause(0.02)
        kld = picker.found["Q3_K_M"].kld
        assert kld is not None
        assert kld > after.kld
        assert divergence(kld) in "".join(text for text, _ in picker.line("Q3_K_M"))


async def all_found(pilot: Pilot[int], picker: TypePicker) -> None:
    """Wait for the sizes and costs of every type."""
    while len(picker.found) < len(ALL_TYPES):
        await pilot.pause(0.02)


async def test_the_type_picker_shows_what_a_type_costs_a_scope(session: Session) -> None:
    session.set_file_type("Q4_K_S")
    costs = session.costs
    assert costs is not None
    async with opened(session, (120, 40)) as (app, pilot):
        await pilot.press("slash")
        await typed(pilot, "blk.5.ffn_up")
        await pilot.press("enter", "t")
        picker = app.screen
        assert isinstance(picker, TypePicker)
        await all_found(pilot, picker)
        own = costs.cost("blk.5.ffn_up.weight", "Q3_K")
        assert own is not None
        assert picker.found["Q3_K"].kld == pytest.approx(own)
        assert divergence(own) in "".join(text for text, _ in picker.line("Q3_K"))
        assert picker.found["IQ2_XXS"].kld is None  # no error of it was measured
        await pilot.press("tab", "tab")
        await all_found(pilot, picker)
        assert picker.scope == "layer"
        kinds = picker.tensors
        assert len(kinds) > 1
        assert picker.found["Q3_K"].kld == pytest.approx(sum(costs.cost(one.name, "Q3_K") or 0 for one in kinds))
        await pilot.press("escape")


async def test_costs_of_the_other_encoder_do_not_hold_and_come_back(session: Session, demo_imatrix: Path) -> None:
    known = session.costs
    assert known is not None
    feedback = made_up_costs(session.model)
    feedback.encoder = "feedback of other moments"
    session.use_costs(feedback)
    assert session.costs is known


async def test_a_size_that_cannot_be_had_is_refused_with_the_nearest(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("F")
        await typed(pilot, "1MB")
        await pilot.press("enter")
        dialog = app.screen
        assert isinstance(dialog, FitDialog)
        assert dialog.fit is None
        assert "the smallest is 3.95 MB" in str(dialog.query_one("#answer").render())
        await pilot.press("escape")


async def test_every_edit_shows_what_it_costs(session: Session) -> None:
    session.set_file_type("Q4_K_M")
    before = session.predicted
    session.set_types(["output.weight"], "Q2_K")
    after = session.predicted
    assert before is not None
    assert after is not None
    assert after.kld > 2 * before.kld
    session.toggle_prune([3])
    assert session.predicted is None
    session.undo()
    assert session.predicted == after


async def test_errors_are_a_column_that_filters_and_sorts(session: Session) -> None:
    session.set_file_type("Q4_K_S")
    session.set_types(["blk.5.ffn_up.weight"], "Q2_K")
    async with opened(session) as (app, pilot):
        await pilot.press("slash")
        await typed(pilot, "err>0.1")
        await pilot.press("enter")
        assert [row.name for row in app.main.tree_.rows if hasattr(row, "name")] == ["blk.5.ffn_up.weight"]
    figures = session.measurements.of_tensors
    assert figures["err"]["blk.5.ffn_up.weight"] == pytest.approx(4.0 ** (-FORMATS["Q2_K"].bpw / 2))
    assert figures["pkld"]["blk.5.ffn_up.weight"] > figures["pkld"]["blk.5.ffn_gate.weight"]
    assert figures["err"].get("blk.0.attn_norm.weight") is None
    assert figures["fragile"]["output.weight"] > 10 * figures["fragile"]["blk.5.ffn_up.weight"]


async def test_costs_hold_for_the_imatrix_they_were_measured_with(session: Session, demo_imatrix: Path) -> None:
    session.use_imatrix(demo_imatrix)
    assert session.costs is None
    assert session.predicted is None
    session.undo()
    assert session.costs is not None


async def test_without_sensitivities_a_text_is_asked_for(session: Session) -> None:
    session.use_costs(None)
    async with opened(session) as (app, pilot):
        assert "KLD" not in text_of(app, "header")
        await pilot.press("F")
        assert isinstance(app.screen, Form)
        await pilot.press("escape")


async def test_a_pruned_plan_is_not_fitted(session: Session) -> None:
    session.toggle_prune([3])
    async with opened(session) as (app, pilot):
        await pilot.press("F")
        assert "write the pruned one" in app.main.message


async def test_what_cannot_be_fitted_is_said_before_a_text_is_asked_for(session: Session) -> None:
    session.use_costs(None)
    session.change(replace(session.plan, exclude_weights=("ffn_down",)), "part of the imatrix")
    async with opened(session) as (app, pilot):
        await pilot.press("F")
        assert "leave out --include-weights and --exclude-weights" in app.main.message
        assert not isinstance(app.screen, Form)
