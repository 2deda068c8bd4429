"""Lists of layers as people read and write them: `26,29`, `3-5`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from surgeon.errors import SurgeonError

_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def spans(layers: Iterable[int], limit: int = 0) -> str:
    """`[1, 2, 3, 7]` -> `1-3, 7`; more than `limit` parts are cut to `5, 11, …, 47 (8 layers)`."""
    ordered = sorted(set(layers))
    if not ordered:
        return ""
    words = []
    first = last = ordered[0]
    for layer in ordered[1:]:
        if layer - last > 1:
            words.append(f"{first}" if first == last else f"{first}-{last}")
            first = layer
        last = layer
    words.append(f"{first}" if first == last else f"{first}-{last}")
    if 0 < limit < len(words):
        return f"{', '.join(words[: limit - 2])}, …, {words[-1]} ({len(ordered)} layers)"
    return ", ".join(words)


def read_spans(text: str, known: Sequence[int]) -> frozenset[int]:
    """`26,29`, `3-5`, separated by commas or blanks, of the layers in `known`. Raises SurgeonError."""
    chosen: set[int] = set()
    for item in re.split(r"[\s,]+", text.strip(", ")):
        first, last = span_of(item)
        if first > last or first not in known or last not in known:
            raise SurgeonError(f"layer {item} does not exist; this model has layers {spans(known)}")
        chosen.update(number for number in known if first <= number <= last)
    return frozenset(chosen)


def span_of(item: str) -> tuple[int, int]:
    """First and last of one item: `26` -> (26, 26), `3-5` -> (3, 5). Raises SurgeonError."""
    match = _SPAN.fullmatch(item)
    if match is None:
        raise SurgeonError(f"{item[:60]!r} is not a layer number; use 26,29 or 3-5")
    return int(match[1]), int(match[2] or match[1])
