"""From what was written or measured to a row of the journal: one row per output, identified by its content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from surgeon.gguf.identity import before_places, model_identity, same_identity
from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.model import load_model
from surgeon.moments.moments import Moments
from surgeon.plan.plan import DEFAULT_SETTINGS, Plan, WriteSettings
from surgeon.plan.recipe import Recipe, file_sha256, to_toml
from surgeon.resolve.resolution import Resolution
from surgeon.trials.figure_table import TABLE
from surgeon.trials.journal import Journal, Measured, Speed, Trial, new_trial

CONDITIONS = ("n_ctx", "n_chunks", "engine", "text")  # what perplexity and KL divergence were measured under


def measured(values: dict[str, Any], text: str = "") -> Measured:
    """What the engine's final figures (of perplexity, KL divergence, a task or bench) add to a trial."""
    if "task" in values:
        name = Path(text).stem if values["task"] == "multiple-choice" else str(values["task"])
        return Measured(tasks={name: (values["score"], values.get("score_error", 0.0))})
    if "tests" in values:
        speeds = {test["test"]: Speed(test["mean"], test["deviation"], test["best"]) for test in values["tests"]}
        return Measured(speed=speeds)
    conditions = {name: values[name] for name in CONDITIONS if name in values}
    if text:
        conditions["text"] = Path(text).name
    return Measured(
        {figure.key: values[figure.key] for figure in TABLE if figure.kept and figure.key in values}, conditions
    )


def recipe_text(
    plan: Plan,
    imatrix: Imatrix | None,
    moments: Moments | None = None,
    settings: WriteSettings = DEFAULT_SETTINGS,
) -> str:
    """The plan as a recipe whose paths are absolute, to be read from anywhere. Raises SurgeonError.

    settings: for one to be written; a journal knows its trials by recipes without them.
    """
    # No file lies below this folder, so no path is made relative to it.
    nowhere = Path("/nowhere")
    recipe = Recipe(replace(plan, imatrix_file=None, moments_file=None), settings=settings)
    if imatrix is not None:
        path = str(imatrix.path)
        recipe = replace(recipe, plan=plan, imatrix=path, imatrix_sha256=file_sha256(path))
    if moments is not None:
        recipe = replace(recipe, moments=str(moments.path), moments_digest=moments.digest)
    return to_toml(recipe, nowhere)


_OF_FILES = ("imatrix", "moments", "heal")  # sections of a recipe that name a file and know it by a checksum
_UNSEEN = ("format", "sha256", "digest", "stored-as", "id")


def recipe_words(recipe: str) -> list[str]:
    """What a recipe says, a line each, for people: no checksums, and `heal "FILE"` for a section that names a file."""
    found: list[str] = []
    section = ""
    for line in map(str.strip, recipe.splitlines()):
        key, _, value = line.partition(" = ")
        if line.startswith("["):
            section = line.strip("[]")
            found += [] if section in _OF_FILES else [line]
        elif line and key not in _UNSEEN and line not in ("rules = [", "]"):
            found.append(f"{section} {value}" if key == "file" and section in _OF_FILES else line.rstrip(","))
    return found


def is_unchanged(plan: Plan) -> bool:
    """Whether the plan leaves the model as it is (an importance matrix alone changes nothing)."""
    return replace(plan, imatrix_file=None, moments_file=None) == Plan()


def record(
    journal: Journal,
    output: Path,
    label: str,
    *,
    measured: Measured | None = None,
    resolution: Resolution | None = None,
    recipe: str = "",
    source_size: int = 0,
    kept: bool = True,
) -> Trial:
    """Add `output` to the journal, or what is new about it to the row it has already.

    resolution: what it was made by, if known; kept: the file stays (one measured and removed has no path to show).
    Raises SurgeonError.
    """
    measured = measured or Measured()
    identity, trials = model_identity(output), journal.trials()
    place = str(output.absolute()) if kept else ""
    known = next((trial for trial in trials if _is_of(trial, identity, place, recipe)), None)
    if known is None:
        unwritten = planned(journal, recipe)
        if unwritten is not None and not unwritten.output_identity:  # measured as a plan; its file has come now
            known = journal.add(replace(unwritten, output=place, output_identity=identity))
    if known is None:
        size, bpw = _size(output, resolution)
        fields = {"bpw": bpw, "recipe": recipe, "output": place, "output_identity": identity, "measured": measured}
        return journal.add(new_trial(free_label(label, trials), size, source_size, **fields))
    newest = replace(known, output=place or known.output, recipe=known.recipe or recipe, output_identity=identity)
    if newest != known:
        journal.add(newest)
    if measured != Measured():
        journal.add_measured(known.id, measured)
    return next(trial for trial in journal.trials() if trial.id == known.id)


def _is_of(trial: Trial, identity: str, place: str, recipe: str) -> bool:
    """Whether a row is that of this output.

    What earlier versions called a file two prunings of a model may share: then name and recipe decide too.
    """
    if trial.output_identity != before_places(identity):
        return trial.output_identity == identity
    return bool(place) and trial.output == place and trial.recipe in ("", recipe or trial.recipe)


def written_output(journal: Journal, recipe: str) -> Path | None:
    """The file this very plan was written to, if it is still there and still the same."""
    made = (output_of(trial) for trial in reversed(journal.trials()) if trial.recipe == recipe)
    return next(filter(None, made), None)


def output_of(trial: Trial) -> Path | None:
    """The trial's file, if it is still there and still the same."""
    path = Path(trial.output) if trial.output else None
    if path is None or not path.is_file():
        return None
    return path if same_identity(trial.output_identity, model_identity(path)) else None


def free_label(label: str, trials: list[Trial]) -> str:
    """`label`, or with a number behind it where another trial has that name."""
    taken = {trial.label for trial in trials}
    if label not in taken:
        return label
    number = 2
    while f"{label} ({number})" in taken:
        number += 1
    return f"{label} ({number})"


def _size(output: Path, resolution: Resolution | None) -> tuple[int, float | None]:
    """Bytes of the output (of all its shards) and bits per weight."""
    if resolution is not None:
        return resolution.total_bytes, resolution.bpw
    model = load_model(output)
    with model.file:
        return model.file.nbytes, model.bpw


def record_plan(
    journal: Journal, label: str, resolution: Resolution, recipe: str, measured: Measured, source_size: int
) -> Trial:
    """Add a plan that was measured without being written, or its figures to the row that the recipe has already."""
    known = planned(journal, recipe)
    if known is not None:
        journal.add_measured(known.id, measured)
        return next(trial for trial in journal.trials() if trial.id == known.id)
    fields = {"bpw": resolution.bpw, "recipe": recipe, "measured": measured}
    return journal.add(new_trial(free_label(label, journal.trials()), resolution.total_bytes, source_size, **fields))


def planned(journal: Journal, recipe: str) -> Trial | None:
    """The newest trial of this very plan."""
    return next((trial for trial in reversed(journal.trials()) if recipe and trial.recipe == recipe), None)
