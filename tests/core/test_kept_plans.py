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
from surgeon.session.kept_plans import recipe_of, resolved_recipe, use_recipe
from surgeon.session.session import Session
from surgeon.write_guard import REPLACE


def test_an_imatrix_collected_anew_is_not_that_of_the_recipe(
    demo_model: Path, demo_imatrix: Path, tmp_path: Path
) -> None:
    imatrix = Path(shutil.copy(demo_imatrix, tmp_path / "im.gguf"))
    session = Session(load_model(demo_model))
    session.use_imatrix(imatrix)
    save_recipe(recipe_of(session), tmp_path / "r.toml")
    recipe = load_recipe(tmp_path / "r.toml")
    other = Session(session.model)
    assert resolved_recipe(other, recipe)[1] is not None
    save_gguf(replace(load_imatrix(imatrix), datasets=("other",)), imatrix, REPLACE)
    for one in (session, other):
        with pytest.raises(SurgeonError, match="is not the imatrix the recipe was made with"):
            resolved_recipe(one, recipe)


def test_the_screen_leaves_out_what_is_another_by_now(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    imatrix = Path(shutil.copy(demo_imatrix, tmp_path / "im.gguf"))
    session = Session(load_model(demo_model))
    session.use_imatrix(imatrix)
    recipe = recipe_of(session)
    mine = session.imatrix
    save_gguf(replace(load_imatrix(imatrix), datasets=("other",)), imatrix, REPLACE)
    for one in (session, Session(session.model)):
        said = use_recipe(one, recipe, "recipe r.toml")
        assert "but without its imatrix" in said
        assert "sha256 differs" in said
        assert one.imatrix is None
    assert session.undo() is not None
    assert session.imatrix is mine, "undo brings back what was on the table"
    assert "without" not in use_recipe(session, replace(recipe, imatrix_sha256=None), "any of that name")
    assert session.imatrix is mine
