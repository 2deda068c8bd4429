"""Plans kept as recipes: of a file, the queue, a trial, a write to be resumed, the last session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from surgeon.errors import SurgeonError
from surgeon.imatrix.imatrix import Imatrix
from surgeon.moments.files import load_moments, load_weighing
from surgeon.moments.moments import Moments
from surgeon.plan.recipe import Recipe, file_sha256, refuse_other_imatrix, refuse_other_moments
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.session.session import Session

Found = TypeVar("Found", Imatrix, Moments)


def resolved_recipe(session: Session, recipe: Recipe) -> tuple[Resolution, Imatrix | None]:
    """The resolution for the session's model, and the recipe's importance matrix; the plan on the table stays.

    What the session has read is not read again. Raises SurgeonError, also where the imatrix or the second moments are
    others by now than those the recipe was made with.
    """
    imatrix = _imatrix_of(recipe, session.imatrix)
    moments = _moments_of(recipe, session.moments)
    return resolve(session.model, recipe.plan, imatrix, moments), imatrix


def use_recipe(session: Session, recipe: Recipe, label: str) -> str:
    """A whole plan from a recipe, as one step; what to say of it.

    An importance matrix or second moments that are missing, or others by now than those the recipe was made with, are
    reported and left out.
    """
    plan, said = recipe.plan, label
    if recipe.imatrix is not None:
        name = plan.imatrix_file or recipe.imatrix
        problem = _put(session.imatrices, name, partial(_imatrix_of, recipe))
        if problem:
            session.absent[name] = recipe
            said += f", but without its imatrix: {problem}"
        # Of that name there may be one on the table: the plan must not be taken for one of that.
        plan = replace(plan, imatrix_file=None if problem and name in session.imatrices else name)
    if recipe.moments is not None:
        name = recipe.moments
        problem = _put(session.moments_files, name, partial(_moments_of, recipe))
        if problem:
            session.absent[name] = recipe
            said += f", but without its second moments: {problem}"
        plan = replace(plan, moments_file=None if problem and name in session.moments_files else name)
    session.change(plan, label, recipe.settings)
    return said


def _put(at_hand: dict[str, Found], name: str, found: Callable[[Found | None], Found | None]) -> str:
    """What is found of that name, given what is there, among what is at hand; why there is none, '' for one."""
    try:
        one = found(at_hand.get(name))
    except SurgeonError as error:
        return str(error)
    if one is not None:
        at_hand[name] = one
    return ""


def _imatrix_of(recipe: Recipe, at_hand: Imatrix | None) -> Imatrix | None:
    """The one at hand where it is the recipe's. Raises SurgeonError."""
    if recipe.imatrix is None:
        return None
    refuse_other_imatrix(recipe.imatrix, recipe.imatrix_sha256)
    if at_hand is not None and str(at_hand.path) == recipe.imatrix:
        return at_hand
    return load_weighing(recipe.imatrix, judged=True)


def _moments_of(recipe: Recipe, at_hand: Moments | None) -> Moments | None:
    """The one at hand where it is the recipe's. Raises SurgeonError."""
    if recipe.moments is None:
        return None
    wanted = recipe.moments_digest
    if at_hand is not None and str(at_hand.path) == recipe.moments and wanted in (None, at_hand.digest):
        return at_hand
    moments = load_moments(recipe.moments)
    refuse_other_moments(recipe.moments, moments.digest, wanted)
    return moments


def recipe_of(session: Session) -> Recipe:
    """The present plan, to be saved. Raises SurgeonError."""
    plan = session.plan if session.moments is not None else replace(session.plan, moments_file=None)
    recipe = Recipe(replace(plan, imatrix_file=None), settings=session.settings)
    if session.imatrix is not None:
        path = str(session.imatrix.path)
        recipe = replace(recipe, plan=plan, imatrix=path, imatrix_sha256=file_sha256(path))
    if session.moments is not None:
        recipe = replace(recipe, moments=str(session.moments.path), moments_digest=session.moments.digest)
    return recipe


def kept_recipe(session: Session) -> Recipe:
    """The present plan for the next session, which looks again for what could not be read in this one."""
    recipe, plan = recipe_of(session), session.plan
    lost = session.absent.get(plan.imatrix_file or "")
    if session.imatrix is None and lost is not None:
        bare = replace(recipe.plan, imatrix_file=plan.imatrix_file)
        recipe = replace(recipe, plan=bare, imatrix=lost.imatrix, imatrix_sha256=lost.imatrix_sha256)
    lost = session.absent.get(plan.moments_file or "")
    if session.moments is None and lost is not None:
        bare = replace(recipe.plan, moments_file=plan.moments_file)
        recipe = replace(recipe, plan=bare, moments=lost.moments, moments_digest=lost.moments_digest)
    return recipe
