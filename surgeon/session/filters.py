r"""What `/` understands: terms joined by blanks, all of which must hold.

ffn_down            a regular expression searched in the tensor's name
!norm               its opposite
~ffdn               these letters in this order, whatever is between
size>100MB          size of the output; also before, elements, cols, rows, layer and every statistic (cos>0.99)
type=Q4_K           the new type; from=F16 the stored one
layer.cos>0.99      the statistic of the whole layer
is:pruned           also marked, changed, fallback, rule, uncovered
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from surgeon.plan.patterns import Pattern
from surgeon.session.fuzzy import has_letters
from surgeon.session.metrics import ALIASES, METRICS

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_TERM = re.compile(r"([a-z.]+)(>=|<=|!=|>|<|=)(.+)", re.IGNORECASE)
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_NUMBER = re.compile(r"([-+]?[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)([a-z%]*)", re.IGNORECASE)
_TEXTS = ("type", "to", "from", "name")
_NUMBERS = ("size", "before", "elements", "cols", "rows", "layer")
_FLAGS = ("pruned", "marked", "changed", "fallback", "rule", "uncovered")
_ALIASES = {"shape": "cols", **ALIASES}


class Filterable(Protocol):
    """What a filter asks of a tensor's row."""

    @property
    def name(self) -> str: ...

    def text_field(self, key: str) -> str: ...

    def number_field(self, key: str) -> float | None: ...

    def flag(self, key: str) -> bool: ...


Predicate = Callable[[Filterable], bool]


@dataclass(frozen=True)
class Filter:
    text: str
    accepts: Predicate


def parse_filter(text: str) -> Filter | None:
    """The filter that `text` states, None for an empty one; raises ValueError with one line for the user.

    Its predicate raises SlowPatternError when it would take long.
    """
    terms = [_term(word) for word in text.split()]
    if not terms:
        return None
    if len(terms) == 1:  # thousands of rows are asked, and most filters are one word
        return Filter(text.strip(), terms[0])
    return Filter(text.strip(), lambda row: all(term(row) for term in terms))


def _term(word: str) -> Predicate:
    if word.startswith("!") and len(word) > 1:
        inner = _term(word[1:])
        return lambda row: not inner(row)
    if word.startswith("~") and len(word) > 1:
        letters = word[1:]
        return lambda row: has_letters(letters, row.name)
    if word.lower().startswith("is:"):
        return _flag(word[3:].lower())
    match = _TERM.fullmatch(word)
    if match:
        return _comparison(match[1].lower(), match[2], match[3])
    return _regex(word)


def _regex(word: str) -> Predicate:
    try:
        pattern = _pattern(word)
    except (re.error, OverflowError) as error:
        raise ValueError(f"{word!r} is not a regular expression: {error}") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"{word[:40]!r} is nested too deeply") from None
    return lambda row: pattern.search(row.name)


@lru_cache(16)
def _pattern(word: str) -> Pattern:
    """Kept, so that what the dialog tried while it was typed is not searched again when it is taken."""
    return Pattern(word, word, re.IGNORECASE)


def _flag(key: str) -> Predicate:
    if key not in _FLAGS:
        raise ValueError(f"is:{key}: known are {', '.join(_FLAGS)}")
    return lambda row: row.flag(key)


def _comparison(key: str, sign: str, operand: str) -> Predicate:
    if key in _TEXTS:
        return _equality(key, sign, operand)
    prefix, _, last = key.rpartition(".")
    last = _ALIASES.get(last, last)
    if prefix not in ("", "layer") or (last not in METRICS and (prefix or last not in _NUMBERS)):
        known = ", ".join((*_TEXTS, *_NUMBERS, *METRICS))
        raise ValueError(f"{key}: no such column; known are {known}")
    key = f"{prefix}.{last}" if prefix else last
    wanted = _number(operand)
    if sign == "!=":
        return lambda row: row.number_field(key) != wanted
    compare = _OPERATORS[sign]

    def holds(row: Filterable) -> bool:
        value = row.number_field(key)
        return value is not None and compare(value, wanted)

    return holds


def _equality(key: str, sign: str, operand: str) -> Predicate:
    if sign not in ("=", "!="):
        raise ValueError(f"{key}{sign}{operand}: {key} can only be = or !=")
    wanted = operand.lower()
    return lambda row: (row.text_field(key).lower() == wanted) == (sign == "=")


def _number(text: str) -> float:
    match = _NUMBER.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match and unit == "%":
        return float(match[1]) / 100
    if not match or unit not in _UNITS:
        raise ValueError(f"{text!r} is not a number (1.5, 100MB, 90%)")
    return float(match[1]) * _UNITS[unit]
