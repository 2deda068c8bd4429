"""A model put on the table: its session, the plan of last time, what to say first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.model.kinds import refuse_imatrix
from surgeon.model.model import load_model
from surgeon.moments.files import load_weighing
from surgeon.plan.plan import History, Plan
from surgeon.plan.recipe import load_recipe
from surgeon.session.kept_plans import use_recipe
from surgeon.session.session import Session
from surgeon.tui.autosave import PlanFile


@dataclass(frozen=True)
class Opened:
    """A session, what to say at its start, and where its plan is kept (None: nowhere)."""

    session: Session
    greeting: str
    plan_file: PlanFile | None


def open_session(path: Path, imatrix: Path | None, recipe: Path | None, *, measure_later: bool = False) -> Opened:
    """The session for a model; raises SurgeonError for files that cannot be read.

    The importance matrix and the recipe of the command line are what it starts with. The plan of last time is a step
    that can be undone.
    """
    model = load_model(path)
    refuse_imatrix(model)
    # It starts with the importance matrix: a plan without one would be worked out first, for nothing.
    loaded = None if imatrix is None else load_weighing(imatrix, judged=True)
    start = History.starting(Plan(imatrix_file=None if imatrix is None else str(imatrix)))
    at_hand = {} if loaded is None else {str(imatrix): loaded}
    session = Session(model, start, imatrices=at_hand, measure_later=measure_later)
    said = []
    if recipe is not None:
        said.append(use_recipe(session, load_recipe(recipe), f"recipe {recipe.name}"))
    if imatrix is not None:
        session.use_imatrix(imatrix, loaded)
    session.begin_here()
    plan_file = PlanFile.of(path)
    if plan_file.number > 1:
        said.insert(0, "another surgeon has this model open: the plan here is a second one, kept apart")
    if recipe is None:
        said.append(_restored(session, plan_file))
    return Opened(session, " · ".join(filter(None, said)), plan_file)


def _restored(session: Session, plan_file: PlanFile) -> str:
    """Take over the plan of last time, but not its importance matrix where there is one already; what to say."""
    try:
        known = plan_file.kept()
        if known is None:
            return ""
        if session.imatrix is not None:
            mine = session.plan.imatrix_file
            known = replace(known, plan=replace(known.plan, imatrix_file=mine), imatrix=mine, imatrix_sha256=None)
        return f"{use_recipe(session, known, 'the plan of the last session')}; u undoes it"
    except SurgeonError as error:
        return f"the saved plan cannot be used: {error}"
