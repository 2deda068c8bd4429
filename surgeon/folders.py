"""The user's folders for state, logs and caches; temporary ones where there is no home that can be written."""

from __future__ import annotations

import contextlib
import os
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


def _usable(what: str, home: str, variable: str) -> Path:
    for folder in _candidates(what, home):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise SurgeonError(f"{home}: cannot be written, nor can {tempfile.gettempdir()}; set {variable} to a folder")


def _candidates(what: str, home: str) -> Iterator[Path]:
    yield Path(home)
    yield Path(tempfile.gettempdir(), f"surgeon-{what}")
