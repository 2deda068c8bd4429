"""Errors, warnings and notes on the plan as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.problems import Problem
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.spans import Line, clean, wrap

_ROLES = {"error": "pruned", "warning": "warning", "note": "muted"}


def problem_lines(problems: Sequence[Problem], width: int) -> list[Line]:
    """Each problem with its severity in words, wrapped."""
    if not problems:
        return [[("no warnings; checks OK", "muted")]]
    lines: list[Line] = []
    for problem in problems:
        wrapped = wrap(clean(problem.text), width - 9, "text")
        for index, line in enumerate(wrapped):
            head = f"{problem.severity:<9}" if index == 0 else " " * 9
            lines.append([(head, _ROLES[problem.severity]), *line])
    return lines


class Preflight(Reader):
    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("pre-flight", "errors block writing · Esc close")
        self.problems = problems

    def lines(self, width: int) -> list[Line]:
        return problem_lines(self.problems, width)
