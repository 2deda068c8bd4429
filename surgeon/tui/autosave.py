"""The plan is kept at every change, so that a dropped connection or a crash loses nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.folders import make_private, state_folder
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, load_recipe, save_recipe
from surgeon.write_guard import Permit


def plan_path(model: Path) -> Path:
    """Where the plan for the model at this path is kept: one per path, readable by its name."""
    absolute = model.absolute()
    digest = hashlib.sha256(str(absolute).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return state_folder() / "plans" / f"{absolute.stem[:60]}-{digest}.toml"


def keep(recipe: Recipe, model: Path) -> str:
    """Save the plan; a line for the user when that failed, '' otherwise."""
    path = plan_path(model)
    try:
        make_private(path.parent)
        if recipe.plan == Plan():
            path.unlink(missing_ok=True)
        else:
            save_recipe(recipe, path, Permit((model,), replace=True))
    except (OSError, SurgeonError) as error:
        return f"the plan could not be saved: {error}"
    return ""


def kept(model: Path) -> Recipe | None:
    """The plan kept for this model, if any; raises SurgeonError when it cannot be read."""
    path = plan_path(model)
    return load_recipe(path) if path.is_file() else None
