"""A word on the write that runs, kept beside the plan: whoever ends the program, the next session can go on with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.folders import make_private
from surgeon.json_text import json_text, read_json
from surgeon.plan.recipe import read_recipe
from surgeon.session.kept_plans import resolved_recipe
from surgeon.session.session import Session
from surgeon.trials.records import recipe_text
from surgeon.tui.autosave import plan_path
from surgeon.tui.jobs.writing import WriteJob
from surgeon.whole_files import write_whole
from surgeon.write.operation import WriteOptions
from surgeon.write_guard import Permit


@dataclass(frozen=True)
class Unfinished:
    """out: what was being written, as the user named it; overwrite: whether a file there may go; recipe: the plan;
    resume_log: there as long as the write can be resumed.
    """

    out: str
    overwrite: bool
    recipe: str
    resume_log: str


def note_path(model: Path) -> Path:
    """Where the word is kept. Raises SurgeonError without a state folder."""
    return plan_path(model).with_suffix(".writing.json")


def note(job: WriteJob) -> str:
    """Keep the word for a write that begins; a line for the user when that failed, '' otherwise."""
    model = job.resolution.model.file.path
    try:
        path = note_path(model)
        make_private(path.parent)
        resolution = job.resolution
        recipe = recipe_text(resolution.plan, job.imatrix, resolution.moments, job.options.settings)
        kept = Unfinished(str(job.out.absolute()), job.options.overwrite, recipe, str(job.resume_log))
        write_whole(path, json_text(asdict(kept)), permit=Permit((model,), replace=True))
    except (OSError, SurgeonError) as error:
        return f"this write could not be noted for the next session: {error}"
    return ""


def forget(model: Path) -> None:
    """There is nothing to go on with any more."""
    with suppress(OSError, SurgeonError):
        note_path(model).unlink(missing_ok=True)


def unfinished(model: Path) -> Unfinished | None:
    """The write of this model that another session left and that can be resumed."""
    try:
        found = read_json(note_path(model).read_bytes())
        kept = Unfinished(str(found["out"]), found["overwrite"] is True, str(found["recipe"]), str(found["resume_log"]))
        return kept if Path(kept.resume_log).is_file() else None
    except (OSError, SurgeonError, ValueError, TypeError, LookupError):
        return None


def job_of(kept: Unfinished, session: Session) -> WriteJob:
    """The job that goes on with it. Raises SurgeonError where its recipe, imatrix or moments cannot be read."""
    recipe = read_recipe(kept.recipe, Path("/"), "the plan of the unfinished write")
    resolution, imatrix = resolved_recipe(session, recipe)
    options = WriteOptions.of(recipe.settings, overwrite=kept.overwrite, resume=True)
    return WriteJob(resolution, imatrix, Path(kept.out), options)
