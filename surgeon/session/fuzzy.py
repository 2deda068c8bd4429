"""Finding by a few letters. Pure."""

from __future__ import annotations


def has_letters(letters: str, text: str) -> bool:
    """Whether `text` holds all letters in their order, with others between: `ffdn` is in `blk.0.ffn_down.weight`."""
    rest = iter(text.lower())
    return all(letter in rest for letter in letters.lower())
