"""A matrix of runs: base types or recipes × write, KLD, tasks, speed, and a card of what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgeon import figures
from surgeon.errors import SurgeonError, UsageError
from surgeon.json_text import json_text
from surgeon.plan import plan as plans
from surgeon.plan.recipe import load_recipe
from surgeon.resolve.resolution import Resolution
from surgeon.session.kept_plans import resolved_recipe
from surgeon.session.queue import Entry
from surgeon.session.session import Session
from surgeon.trials.records import recipe_text
from surgeon.tui.answers import Answers
from surgeon.tui.dialogs.forms.form import Field, Form
from surgeon.tui.dialogs.forms.measure_forms import EVALUATE, TEXTS, path_of, tasks_field, wanted_of
from surgeon.tui.dialogs.forms.write import free_line
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.writing import default_output

MEASURED = tuple(key for key, _ in EVALUATE)
_WHAT = (("write", "write"), *EVALUATE)


def matrix_form(session: Session, answers: Answers) -> Form:
    """Answered by what `matrix_entries` reads."""
    source = session.model.file.path.absolute()
    card = answers.get("card", str(source.with_name(f"{source.stem}.card.md")))
    fields = [
        Field("types", "types", answers.get("types", "Q4_K_M Q5_K_M Q6_K Q8_0"), "base types, recipes (.toml)"),
        Field("what", "do", answers.get("what", "write kld"), options=_WHAT),
        Field("text", "text", answers.get("text", f"{source.parent}/"), "a text file", TEXTS),
        Field("chunks", "chunks", answers.get("chunks", "8"), "how many; -1: the whole text"),
        Field("context", "context", answers.get("context", "512"), "tokens per chunk"),
        tasks_field(answers),
        Field("n_tasks", "of each", answers.get("n_tasks", "100"), "how many tasks; 0: all"),
        Field("card", "card", card, "Markdown tables of the outcome; none if empty", (".md",)),
    ]  # fmt: skip

    known: dict[str, list[Run]] = {}  # a large model is resolved in tens of milliseconds: not at every key

    def check(found: Answers) -> tuple[bool, list[Line]]:
        types = found["types"]
        try:
            if types not in known:
                known[types] = runs_of(session, types)
            entries = matrix_entries(known[types], found)
        except (SurgeonError, ValueError) as error:
            return False, [[(clean(str(error)), "warning")]]
        names = ", ".join(run.label for run in known[types])
        count = figures.counted(len(entries), "entry", "entries")
        lines: list[Line] = [[(f"{count} for the queue: ", "strong"), (clean(names), "text")]]
        if "write" in found["what"].split():
            total = sum(run.resolution.total_bytes for run in known[types])
            lines.append([("files", "muted"), *free_line(total, source.parent)])
        return True, lines

    return Form("matrix of runs, with the rules and prunes of the plan", fields, check, do="queue")


@dataclass(frozen=True)
class Run:
    """One plan of the matrix. recipe: TOML that restores it."""

    label: str
    recipe: str
    resolution: Resolution


def runs_of(session: Session, text: str) -> list[Run]:
    """A run for each base type (with what else the present plan says) or recipe named. Raises SurgeonError."""
    runs = [_of_recipe(session, word) if word.endswith(".toml") else _of_type(session, word) for word in words_of(text)]
    if not runs:
        raise UsageError("types: name base types or recipes, with blanks between")
    for run in runs:
        if run.resolution.errors:
            raise SurgeonError(f"{run.label}: {run.resolution.errors[0].text}")
    return runs


def words_of(text: str) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def _of_type(session: Session, name: str) -> Run:
    plan = plans.with_file_type(session.plan, name)
    resolution = session.preview(plan)
    return Run(default_output(resolution).stem, recipe_text(plan, session.imatrix, session.moments), resolution)


def _of_recipe(session: Session, name: str) -> Run:
    recipe = load_recipe(path_of(name))
    resolution, imatrix = resolved_recipe(session, recipe)
    label = path_of(name).name.removesuffix(".toml").removesuffix(".recipe")
    return Run(label, recipe_text(recipe.plan, imatrix, resolution.moments), resolution)


def matrix_entries(runs: Sequence[Run], answers: Answers) -> list[Entry]:
    """Write and measure one plan after the other, then the card. Raises SurgeonError, UsageError."""
    what = answers["what"].split()
    measured = " ".join(word for word in what if word in MEASURED)
    if measured:
        wanted_of({**answers, "what": measured})
    elif "write" not in what:
        raise UsageError("do: switch on something with Space")
    asked = {key: answers[key] for key in ("text", "chunks", "context", "tasks", "n_tasks")} | {"what": measured}
    entries: list[Entry] = []
    for run in runs:
        if "write" in what:
            folder = run.resolution.model.file.path.absolute().parent
            entries.append(Entry("write", run.label, {"out": str(folder / f"{run.label}.gguf")}, run.recipe))
        if measured:
            entries.append(Entry("evaluate", run.label, asked, run.recipe))
    if answers["card"] and measured:
        card = path_of(answers["card"])
        if card.is_dir() or not card.parent.is_dir():
            raise UsageError("card: a file name in an existing folder")
        recipes = json_text([run.recipe for run in runs])
        entries.append(Entry("card", card.name, {"card": str(card), "recipes": recipes}))
    return entries


def free_name(path: Path) -> Path:
    """`path`, or with a number behind its stem where that exists."""
    number, found = 2, path
    while found.exists():
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return found
