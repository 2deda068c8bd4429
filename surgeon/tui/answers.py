"""What was answered the last time, for each model and dialog; for a model not seen before, what was answered last."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.folders import make_private, state_folder
from surgeon.json_text import json_text, read_json
from surgeon.whole_files import write_whole
from surgeon.write_guard import REPLACE, Permit

Answers = dict[str, str]


def _path(model: Path | None) -> Path:
    if model is None:
        return state_folder() / "answers" / "last.json"
    digest = hashlib.sha256(str(model.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return state_folder() / "answers" / f"{model.stem[:60]}-{digest}.json"


def remembered(model: Path, dialog: str, general: tuple[str, ...] = ()) -> Answers:
    """The last answers; of another model only those named in `general` (a text, but not an output)."""
    try:
        own = _read(_path(model)).get(dialog)
        last = _read(_path(None)).get(dialog, {})
    except SurgeonError:  # no folder to remember anything in
        return {}
    return own if own is not None else {key: value for key, value in last.items() if key in general}


def remember(model: Path, dialog: str, answers: Answers) -> None:
    """Keep them; where that is not possible the next dialog merely starts empty."""
    with contextlib.suppress(OSError, SurgeonError):
        for path in (_path(model), _path(None)):
            known = _read(path) | {dialog: answers}
            make_private(path.parent)
            write_whole(path, json_text(known), permit=Permit((model,), replace=True))


MOST_KEPT = 50  # entries of one history


def history_of(name: str) -> list[str]:
    """Earlier answers to fields of one kind (`paths`, `rules`), the newest first, of all models."""
    with contextlib.suppress(SurgeonError, OSError, ValueError):
        known = read_json((state_folder() / "answers" / "history.json").read_text(encoding="utf-8"))
        if isinstance(known, dict) and isinstance(known.get(name), list):
            return [str(text) for text in known[name]]
    return []


def add_to_history(name: str, text: str) -> None:
    """`text` becomes the newest of its kind; where that cannot be kept, nothing happens."""
    known = {kind: history_of(kind) for kind in ("paths", "rules", "filters")}
    known[name] = [text, *(other for other in known.get(name, []) if other != text)][:MOST_KEPT]
    with contextlib.suppress(OSError, SurgeonError):
        path = state_folder() / "answers" / "history.json"
        make_private(path.parent)
        write_whole(path, json_text(known), permit=REPLACE)


def _read(path: Path) -> dict[str, Answers]:
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        str(dialog): {str(key): str(value) for key, value in answers.items()}
        for dialog, answers in found.items()
        if isinstance(answers, dict)
    }
