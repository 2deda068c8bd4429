"""Where compiled kernels are kept, and whether what lies there may be run.

The cache holds machine code and pickles, which run as the user who loads them. So nothing is loaded that another user
could have put there: from the cache's root down to the file, everything must belong to this user and be writable by
nobody else.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@cache
def root() -> Path | None:
    """The folder for the kernels of all versions; None where there is no folder that can be written and trusted.

    `$SURGEON_CACHE_DIR/kernels`, else `surgeon/kernels` in the platform's cache folder, else one in the temporary
    folder (no home directory).
    """
    return next((folder for folder in _candidates() if refusal_of_root(folder) is None), None)


def refusals() -> list[str]:
    """Why each folder that could have held the cache does not, a line each."""
    found = root()
    lines = []
    for folder in _candidates():
        if folder == found:
            break
        lines.append(refusal_of_root(folder) or f"{folder}: was not usable when this process began")
    return lines


def refusal_of_root(folder: Path) -> str | None:
    """Why no kernels are kept in `folder`, which is made if it is not there; None where nothing is wrong with it."""
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{folder}: cannot be written: {error.strerror or error}"
    return refusal(folder.parent) or refusal(folder)


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone whatever the umask. Raises OSError."""
    if folder.is_dir():
        return
    make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def refusal(path: Path, *, file: bool = False) -> str | None:
    """Why what lies at `path` must not be run, or None. A `file` must be a plain one; a folder may be a link to one.

    Raises OSError where it cannot be looked at.
    """
    found = path.lstat() if file else path.stat()
    if file and not stat.S_ISREG(found.st_mode):
        return f"{path}: is not a plain file"
    if not hasattr(os, "getuid"):  # Windows keeps the user's folder by access lists
        return None
    if found.st_uid != os.getuid():
        return f"{path}: belongs to another user (uid {found.st_uid})"
    if found.st_mode & _OTHERS_WRITE:
        return f"{path}: others may write there (mode {stat.S_IMODE(found.st_mode):o}); chmod go-w it"
    return None


def distrusted(folder: Path) -> bool:
    """Whether a version's folder, or one above it up to the cache's root, could hold what another user put there."""
    try:
        return any(refusal(path) for path in (folder.parent.parent, folder.parent, folder))
    except OSError:
        return True


def remove_distrusted(files: list[Path]) -> bool:
    """Remove the files that must not be loaded; whether there were any. Raises OSError where one cannot be removed."""
    bad = [path for path in files if refusal(path, file=True)]
    for path in bad:
        path.unlink()
    return bool(bad)


def _candidates() -> Iterator[Path]:
    """Folders for the cache, the preferred one first."""
    if chosen := os.environ.get("SURGEON_CACHE_DIR"):
        yield Path(chosen) / "kernels"
        return
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        roots = [Path(base)] if base else []
    elif sys.platform == "darwin":
        roots = [Path("~/Library/Caches")]
    else:
        roots = [Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")]
    for folder in roots:
        with contextlib.suppress(RuntimeError):  # no home directory
            yield folder.expanduser() / "surgeon" / "kernels"
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    yield Path(tempfile.gettempdir()) / f"surgeon-{user}" / "kernels"
