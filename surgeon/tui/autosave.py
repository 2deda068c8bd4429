"""The plan is kept at every change, so that a dropped connection or a crash loses nothing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.folders import make_private, state_folder
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, load_recipe, save_recipe
from surgeon.write_guard import Permit

_MOST = 9  # programs with the same model, each with a plan file of its own


def plan_path(model: Path, number: int = 1) -> Path:
    """Where the plan for the model at this path is kept: one per path (and program), readable by its name."""
    absolute = model.absolute()
    digest = hashlib.sha256(str(absolute).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return state_folder() / "plans" / f"{absolute.stem[:60]}-{digest}{f'-{number}' if number > 1 else ''}.toml"


@dataclass
class PlanFile:
    """The plan file of one program. number: 1, or more while others have the same model open; lock: held to the end."""

    model: Path
    number: int
    lock: int

    @classmethod
    def of(cls, model: Path) -> PlanFile:
        """The first that no running program holds. Where locks or folders are not to be had, the first."""
        for number in range(1, _MOST + 1):
            lock = _locked(model, number)
            if lock is not None:
                return cls(model, number, lock)
        return cls(model, 1, -1)

    def keep(self, recipe: Recipe) -> str:
        """Save the plan; a line for the user when that failed, '' otherwise."""
        try:
            path = plan_path(self.model, self.number)
            make_private(path.parent)
            if recipe.plan == Plan():
                path.unlink(missing_ok=True)
            else:
                save_recipe(recipe, path, Permit((self.model,), replace=True))
        except (OSError, SurgeonError) as error:
            return f"the plan could not be saved: {error}"
        return ""

    def kept(self) -> Recipe | None:
        """The plan kept here, if any; raises SurgeonError when it cannot be read."""
        path = plan_path(self.model, self.number)
        return load_recipe(path) if path.is_file() else None

    def release(self) -> None:
        """Let another program have it; the end of this one does so too."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def _locked(model: Path, number: int) -> int | None:
    """A file descriptor that holds the lock of a plan file, -1 where nothing can be locked, None where another has it.

    The lock is a file beside the plan: the plan itself is replaced at every change.
    """
    fd = -1
    try:
        path = plan_path(model, number).with_suffix(".lock")
        make_private(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError):
            os.close(fd)
        return None
    except (OSError, SurgeonError):
        if fd >= 0:
            os.close(fd)
        return -1
    return fd
