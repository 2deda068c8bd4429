"""Plans kept as recipes hold for the files they were made with: of the queue, of trials, of writes to be resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from surgeon.errors import SurgeonError
from surgeon.imatrix.files import load_imatrix, save_gguf
from surgeon.model.model import load_model
from surgeon.plan.recipe import load_recipe, save_recipe
from surgeon.session.kept_plans import resolved_recipe
from surgeon.session.session import Session
from surgeon.write_guard import REPLACE


def test_an_imatrix_collected_anew_is_not_that_of_the_recipe(
    demo_model: Path, demo_imatrix: Path, tmp_path: Path
) -> None:
    imatrix = Path(shutil.copy(demo_imatrix, tmp_path / "im.gguf"))
    session = Session(load_model(demo_model))
    session.use_imatrix(imatrix)
    save_recipe(session.recipe(), tmp_path / "r.toml")
    recipe = load_recipe(tmp_path / "r.toml")
    other = Session(session.model)
    assert resolved_recipe(other, recipe)[1] is not None
    save_gguf(replace(load_imatrix(imatrix), datasets=("other",)), imatrix, REPLACE)
    for one in (session, other):
        with pytest.raises(SurgeonError, match="is not the imatrix the recipe was made with"):
            resolved_recipe(one, recipe)
