"""The metadata of the output beside that of the model: what is set, deleted, new. Nothing here knows textual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgeon.errors import SurgeonError
from surgeon.gguf.values import Value, ValueType
from surgeon.plan import plan as plans
from surgeon.plan.plan import KVOverride, Plan
from surgeon.resolve.metadata import concrete, override_value
from surgeon.session.fuzzy import has_letters
from surgeon.session.session import Session

State = Literal["same", "set", "new", "deleted", "planned"]
MOST_SHOWN = 2000  # elements of an array


@dataclass(frozen=True)
class KeyRow:
    """A key of the model (stored) or of the output (now), None where that has none; by_hand: set or deleted by hand."""

    key: str
    stored: Value | None
    now: Value | None
    by_hand: bool

    @property
    def state(self) -> State:
        """planned: changed by what else the plan does (its types, pruning)."""
        if self.now is None:
            return "deleted"
        if self.stored is None:
            return "new" if self.by_hand else "planned"
        if self.by_hand:
            return "set"
        return "same" if self.now == self.stored else "planned"

    @property
    def value(self) -> Value:
        """What is shown: of the output, or what is deleted."""
        found = self.now if self.now is not None else self.stored
        assert found is not None  # a row has one of them
        return found


def key_rows(session: Session, search: str = "") -> list[KeyRow]:
    """All keys, the model's first; search: words that key or value has, or (~word) letters of the key in order."""
    stored, now = session.model.file.kv, dict(session.resolution.metadata)
    plan = session.plan
    by_hand = {override.key for override in plan.override_kv} | set(plan.deleted_keys)
    rows = (KeyRow(key, stored.get(key), now.get(key), key in by_hand) for key in dict.fromkeys((*stored, *now)))
    words = search.lower().split()
    return [row for row in rows if all(_has(row, word) for word in words)]


def _has(row: KeyRow, word: str) -> bool:
    if word.startswith("~"):
        return has_letters(word[1:], row.key)
    return word in row.key.lower() or word in row.value.brief().lower()


def with_text(session: Session, key: str, text: str) -> Plan:
    """The plan with the key set to `text`, read as the type that the key has. Raises SurgeonError."""
    if not key or any(letter.isspace() for letter in key):
        raise SurgeonError("a key is one word, for instance general.name")
    stored = session.model.file.kv.get(key)
    override = concrete(KVOverride(key, "auto", text), stored)
    override_value(override, stored, compat=session.plan.compat)  # refuses what does not fit
    return plans.with_key(session.plan, override)


def text_of_file(path: Path) -> str:
    """The whole of a UTF-8 file. Raises SurgeonError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SurgeonError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def whole_lines(value: Value) -> Iterator[str]:
    """The value line by line: a text as it is, an array one element a line up to MOST_SHOWN of them."""
    if value.type is not ValueType.ARRAY:
        yield from str(value.decode()).split("\n")
        return
    elements = value.decode()
    for place, element in enumerate(elements[:MOST_SHOWN]):
        yield f"{place:>6}  {element!r}" if isinstance(element, str) else f"{place:>6}  {element}"
    if len(elements) > MOST_SHOWN:
        yield f"        … {len(elements) - MOST_SHOWN:,} more"


def folded(line: str, width: int) -> list[str]:
    """A long line in pieces of at most `width`: cut after `%}` and `}}` of a template, at a blank, or anywhere."""
    pieces = []
    while len(line) > width:
        ends = [line.rfind(mark, width // 3, width) + len(mark) for mark in ("%}", "}}", "\\n")]
        at = max([end for end in ends if end > 2], default=0) or line.rfind(" ", width // 3, width) + 1 or width
        at = min(at, width)
        pieces.append(line[:at])
        line = line[at:]
    return [*pieces, line]
