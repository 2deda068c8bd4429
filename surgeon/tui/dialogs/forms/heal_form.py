"""What is asked before healing: texts to fit on and to measure on, where the heal file goes."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import SurgeonError, UsageError
from surgeon.layer_lists import spans
from surgeon.measure.estimate import of_heal
from surgeon.measure.healing.heal_run import HealRequest, HealRun
from surgeon.model.model import Model
from surgeon.plan.plan import Plan
from surgeon.session.session import Session
from surgeon.tui.answers import Answers
from surgeon.tui.dialogs.forms.form import Field, Form
from surgeon.tui.dialogs.forms.measure_forms import TEXTS, Ground, number_of, path_of, paths_of
from surgeon.tui.drawing.estimate_lines import estimate_lines
from surgeon.tui.drawing.spans import Line, clean

_COMMAS = ", with commas between"
ASKED = ("text", "held_out", "tokens", "context")


def heal_form(session: Session, answers: Answers, ground: Ground) -> Form:
    """Answered by what `request_of` reads."""
    folder = f"{session.model.file.path.absolute().parent}/"
    held_out = answers.get("held_out", "")
    fields = [
        Field("text", "texts", answers.get("text", folder), f"to fit on, of every kind{_COMMAS}", TEXTS, several=True),
        Field("held_out", "held out", held_out, f"to measure on, not to fit on{_COMMAS}", TEXTS, several=True),
        Field("tokens", "tokens", answers.get("tokens", "30"), "for each column of ffn_down; fewer overfit"),
        Field("context", "context", answers.get("context", "512"), "tokens per chunk"),
        Field("out", "file", str(default_file(session)), "the heal file", (".gguf",)),
    ]
    title = f"heal the prune of {spans(session.plan.pruned, 4)}"
    return Form(title, fields, lambda found: _check(session, found, ground), do="heal", rows=2)


def default_file(session: Session) -> Path:
    """Beside the model, named after the layers; one that is not there yet."""
    model = session.model.file.path.absolute()
    layers = "-".join(map(str, sorted(session.plan.pruned)))[:40]
    path = model.with_name(f"{model.stem}-without-{layers}.heal.gguf")
    number = 2
    while path.exists():
        path = model.with_name(f"{model.stem}-without-{layers}-{number}.heal.gguf")
        number += 1
    return path


def request_of(model: Model, plan: Plan, answers: Answers) -> HealRequest:
    """The prune of `plan` to be healed. Raises SurgeonError where something is missing or does not fit."""
    out = path_of(answers["out"])
    if out.exists():
        raise UsageError(f"{out}: already exists; choose another name")
    if not out.parent.is_dir():
        raise UsageError(f"no such folder: {out.parent}")
    texts, held_out = paths_of(answers["text"]), paths_of(answers["held_out"])
    for label, paths in (("texts", texts), ("held out", held_out)):
        if any(path.is_dir() for path in paths):
            raise UsageError(f"{label}: is a folder: name a file in it (Tab completes)")
    request = HealRequest(
        model, plan.pruned, texts, out, held_out, per_column=number_of(answers, "tokens", 30, 1),
        n_ctx=number_of(answers, "context", 512, 8), know_risks=plan.know_risks,
    )  # fmt: skip
    request.check()
    return request


def _check(session: Session, answers: Answers, ground: Ground) -> tuple[bool, list[Line]]:
    try:
        estimate = of_heal(HealRun(request_of(session.model, session.plan, answers), ground.engine, ground.cache))
    except SurgeonError as error:
        return False, [[(clean(str(error)), "warning")]]
    return True, estimate_lines(estimate, ground.speeds)
