"""What was answered the last time, for each model and dialog; for a model not seen before, what was answered last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from surgeon.tui.config import state_path

Answers = dict[str, str]


def _path(model: Path | None) -> Path:
    if model is None:
        return state_path() / "answers" / "last.json"
    digest = hashlib.sha256(str(model.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return state_path() / "answers" / f"{model.stem[:60]}-{digest}.json"


def remembered(model: Path, dialog: str, general: tuple[str, ...] = ()) -> Answers:
    """The last answers; of another model only those named in `general` (a text, but not an output)."""
    own = _read(_path(model)).get(dialog)
    if own is not None:
        return own
    return {key: value for key, value in _read(_path(None)).get(dialog, {}).items() if key in general}


def remember(model: Path, dialog: str, answers: Answers) -> None:
    """Keep them; where that is not possible the next dialog merely starts empty."""
    for path in (_path(model), _path(None)):
        known = _read(path) | {dialog: answers}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known), encoding="utf-8")
            temporary.replace(path)


def _read(path: Path) -> dict[str, Answers]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        str(dialog): {str(key): str(value) for key, value in answers.items()}
        for dialog, answers in found.items()
        if isinstance(answers, dict)
    }
