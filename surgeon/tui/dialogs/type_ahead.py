"""Finding a line of a list by typing its name. What was typed stays, however slow the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Names = Sequence[tuple[str, tuple[str, ...]]]
"""(id of the line, what it may be called), in the order shown."""


@dataclass
class TypeAhead:
    """text: what was typed so far, in lower case; within: where no name begins so, those that contain it will do."""

    names: Names
    text: str = ""
    within: bool = False

    def matches(self) -> list[str]:
        """Ids of the lines whose name begins with the text; or contains it."""
        begin = [key for key, called in self.names if any(name.lower().startswith(self.text) for name in called)]
        if begin or not self.within:
            return begin
        return [key for key, called in self.names if any(self.text in name.lower() for name in called)]

    def nearest(self) -> str | None:
        """The line to go to: the one called exactly so, else the first that matches."""
        exact = [key for key, called in self.names if self.text in (name.lower() for name in called)]
        return next(iter(exact or self.matches()), None)

    def named(self) -> str | None:
        """The line that the text names: the one called exactly so, or the only one that matches; None where unclear."""
        found = self.matches()
        nearest = self.nearest()
        exact = any(key == nearest and self.text in (name.lower() for name in called) for key, called in self.names)
        return nearest if exact or len(found) == 1 else None

    def trouble(self) -> str:
        """Why the text names no line, '' where it does."""
        if self.named() is not None:
            return ""
        found = self.matches()
        if not found:
            return f"no {self.text} here: Backspace deletes"
        first = dict(self.names)
        shown = ", ".join(first[key][0] for key in found[:4])
        return f"{self.text}: which one? {shown}{' …' if len(found) > 4 else ''}"
