"""What a plan that was kept as a recipe comes to: of the queue, of a trial, of a write to be resumed."""

from __future__ import annotations

from surgeon.imatrix.imatrix import Imatrix
from surgeon.moments.files import load_moments, load_weighing
from surgeon.plan.recipe import Recipe, refuse_other_imatrix, refuse_other_moments
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.session.session import Session


def resolved_recipe(session: Session, recipe: Recipe) -> tuple[Resolution, Imatrix | None]:
    """The resolution for the session's model, and the recipe's importance matrix; the plan on the table stays.

    What the session has read is not read again. Raises SurgeonError, also where the imatrix or the second moments are
    others by now than those the recipe was made with.
    """
    imatrix, moments = session.imatrix, session.moments
    if recipe.imatrix is None:
        imatrix = None
    elif imatrix is None or str(imatrix.path) != recipe.imatrix:
        imatrix = load_weighing(recipe.imatrix, judged=True)
    if recipe.moments is None:
        moments = None
    elif moments is None or str(moments.path) != recipe.moments:
        moments = load_moments(recipe.moments)
    if recipe.imatrix is not None:
        refuse_other_imatrix(recipe.imatrix, recipe.imatrix_sha256)
    if recipe.moments is not None and moments is not None:
        refuse_other_moments(recipe.moments, moments.digest, recipe.moments_digest)
    return resolve(session.model, recipe.plan, imatrix, moments), imatrix
