"""Searching names with patterns of strangers: bounded, whatever the pattern.

Python's `re` tries every way to divide a text among a pattern's repeats: `([a-z0-9._]+)+@` takes longer than the age of
the world on a name of 60 letters. Patterns with few ways go to `re`, which is the fastest; all others to `regex`,
which has a clock, and each pattern gets a second of it for all its names together.
"""

from __future__ import annotations

import re
import time
import warnings
from functools import lru_cache
from typing import Any

from surgeon.errors import SurgeonError

SECONDS = 1.0
LONGEST = 20_000  # letters of a pattern
_MOST_WAYS = 500  # from each letter of a name to the end of the pattern
_LONGEST_NAME = 127
_REPEAT = re.compile(r"(?<!\\)(?:\\\\)*[*+?{]")


class SlowPatternError(SurgeonError):
    """A pattern that had its time."""


class Pattern:
    """A pattern in Python's spelling. `search` answers whether it is found in a name; flags: ASCII or IGNORECASE."""

    __slots__ = ("_clocked", "_compiled", "_known", "_left", "_shown")

    def __init__(self, python: str, shown: str, flags: re.RegexFlag = re.ASCII) -> None:
        """Raises re.error, OverflowError, RecursionError or MemoryError where `python` is none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of signs in brackets that may once mean sets
            self._compiled = re.compile(python, flags)
        self._clocked = None if is_simple(python) else _clocked(python, flags)
        self._known: dict[str, bool] = {}
        self._left = SECONDS
        self._shown = shown

    @property
    def is_quick(self) -> bool:
        """Whether it needs no clock."""
        return self._clocked is None

    def search(self, name: str) -> bool:
        """Raises SlowPatternError when the pattern has had its time."""
        if self._clocked is None:
            return self._compiled.search(name) is not None
        if name not in self._known:
            self._known[name] = self._searched(name)
        return self._known[name]

    def _searched(self, name: str) -> bool:
        assert self._clocked is not None
        began = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            return self._clocked.search(name, timeout=self._left) is not None
        except (TimeoutError, MemoryError):
            self._left = 0.0
            raise SlowPatternError(
                f"pattern {self._shown!r:.80} takes more than {SECONDS:.0f} s: put no repeat inside a repeat"
            ) from None
        finally:
            self._left -= time.monotonic() - began


def is_simple(python: str) -> bool:
    """Whether the ways to match are so few that `re` cannot take long: no group is repeated, few repeats, few branches.

    Judged by the letters alone; a pattern with such signs in brackets merely takes the longer way.
    """
    if re.search(r"\)[*+?{]", python) or re.search(r"\\[1-9]", python):
        return False
    repeats = len(_REPEAT.findall(python.replace("(?", "(")))
    ways = _LONGEST_NAME ** min(repeats, 2)
    for group in python.split("("):
        ways *= 1 + group.count("|")
        if ways > _MOST_WAYS:
            return False
    return True


@lru_cache(64)
def _clocked(python: str, flags: re.RegexFlag) -> Any:
    import regex  # takes 20 ms to load, and is hardly ever needed

    try:
        # The numbers behind the names of flags differ from those of `re`.
        wanted = regex.IGNORECASE if flags & re.IGNORECASE else regex.ASCII
        return regex.compile(python, wanted | regex.VERSION0)
    except regex.error as error:
        raise re.error(str(error)) from None
