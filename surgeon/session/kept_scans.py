"""What scans of a model kept in the state folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgeon.json_text import read_json

# What comes of reading a file of another version: the one before it may do.
OF_ANOTHER_VERSION = (KeyError, TypeError, ValueError, OverflowError)


def kept_scans(folder: Path, identity: str) -> Iterator[Any]:
    """The values in a model's files, newest first; a file that is being written, or is not JSON, is passed over."""
    for path in sorted(folder.glob(f"{identity}-*.json"), key=_age, reverse=True):
        try:
            kept = read_json(path.read_bytes())
        except (OSError, ValueError):
            continue
        yield kept


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
