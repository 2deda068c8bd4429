"""What was answered the last time, for each model and dialog; for a model not seen before, what was answered last.

A text is shared: whichever dialog it was chosen in, every dialog that asks for one of its use offers it. There are two
uses, because what was calibrated on shall not be offered for measuring.
"""

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

_TEXTS = "texts"  # beside the dialogs: use -> the text last chosen for it
_MEASURE, _CALIBRATE = "measure", "calibrate"
_USES: dict[str, dict[str, str]] = {  # dialog -> field -> use
    "evaluate": {"text": _MEASURE},
    "matrix": {"text": _MEASURE},
    "scan": {"text": _MEASURE},
    "collect": {"text": _CALIBRATE},
    "sensitivities": {"text": _CALIBRATE},
    "heal": {"text": _CALIBRATE, "held_out": _MEASURE},
}


def _path(model: Path | None) -> Path:
    if model is None:
        return state_folder() / "answers" / "last.json"
    digest = hashlib.sha256(str(model.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return state_folder() / "answers" / f"{model.stem[:60]}-{digest}.json"


def remembered(model: Path, dialog: str, general: tuple[str, ...] = ()) -> Answers:
    """The last answers; of another model only those named in `general` (a text, but not an output)."""
    try:
        own, last = _read(_path(model)), _read(_path(None))
    except SurgeonError:  # no folder to remember anything in
        return {}
    known = {key: value for key, value in last.get(dialog, {}).items() if key in general}
    answers = own.get(dialog, known)
    texts = own.get(_TEXTS) or last.get(_TEXTS, {})
    shared = {field: texts[use] for field, use in _USES.get(dialog, {}).items() if use in texts}
    return answers | {field: text for field, text in shared.items() if "," not in answers.get(field, "")}  # lists stay


def _texts_of(dialog: str, answers: Answers) -> Answers:
    """Use -> text, of the fields that name one file (a folder is what a field begins with)."""
    named = {use: answers.get(field, "") for field, use in _USES.get(dialog, {}).items()}
    return {use: text for use, text in named.items() if text and Path(text).expanduser().is_file()}


def remember(model: Path, dialog: str, answers: Answers) -> None:
    """Keep them; where that is not possible the next dialog merely starts empty."""
    with contextlib.suppress(OSError, SurgeonError):
        for path in (_path(model), _path(None)):
            known = _read(path)
            known |= {dialog: answers, _TEXTS: known.get(_TEXTS, {}) | _texts_of(dialog, answers)}
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
