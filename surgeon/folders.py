"""The user's folders for state, logs and caches; temporary ones where there is no home that can be written.

They are made for this user alone (0700): journals and logs name files and hold texts, and kept plans are acted on. A
folder of another user, or one that everybody may write to, is passed over.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from surgeon.errors import SurgeonError


def state_folder() -> Path:
    """Where journals, kept plans and scan states lie. Raises SurgeonError when no folder can be written."""
    return _usable("state", platformdirs.user_state_dir("surgeon"), "XDG_STATE_HOME")


def log_folder() -> Path:
    """Where the logs of the last engine runs lie. Raises SurgeonError when no folder can be written."""
    return _usable("logs", platformdirs.user_log_dir("surgeon"), "XDG_STATE_HOME")


def cache_folder() -> Path:
    """Where what can be made again lies. Raises SurgeonError when no folder can be written."""
    return _usable("cache", platformdirs.user_cache_dir("surgeon"), "XDG_CACHE_HOME")


def config_folder() -> Path:
    """Where the user's settings lie; only ever read."""
    return Path(platformdirs.user_config_dir("surgeon"))


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone whatever the umask. Raises OSError."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _usable(what: str, home: str, variable: str) -> Path:
    for folder in _candidates(what, home):
        with contextlib.suppress(OSError):
            make_private(folder)
            if _is_own(folder) and os.access(folder, os.W_OK):
                return folder
    raise SurgeonError(
        f"{home}: cannot be written by you alone, nor can {tempfile.gettempdir()}; set {variable} to a folder"
    )


def _is_own(folder: Path) -> bool:
    """Whether the folder is this user's; what an earlier umask left open to others is closed. Raises OSError."""
    found = folder.stat()
    if not hasattr(os, "getuid"):  # Windows keeps the user's folder by access lists
        return True
    if found.st_uid != os.getuid():
        return False
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return True


def _candidates(what: str, home: str) -> Iterator[Path]:
    yield Path(home)
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    temporary = Path(tempfile.gettempdir(), f"surgeon-{user}-{what}")
    if not temporary.is_symlink():  # another user's, into a folder of ours
        yield temporary
