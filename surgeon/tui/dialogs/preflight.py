"""Errors, warnings and notes on the plan as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from surgeon.problems import Problem
from surgeon.tui.dialogs.base import Dialog
from surgeon.tui.spans import Line, clean, wrap

_ROLES = {"error": "pruned", "warning": "warning", "note": "muted"}


def problem_lines(problems: Sequence[Problem], width: int) -> list[Line]:
    """Each problem with its severity in words, wrapped."""
    if not problems:
        return [[("nothing to say: the plan is clear", "muted")]]
    lines: list[Line] = []
    for problem in problems:
        wrapped = wrap(clean(problem.text), width - 9, "text")
        for index, line in enumerate(wrapped):
            head = f"{problem.severity:<9}" if index == 0 else " " * 9
            lines.append([(head, _ROLES[problem.severity]), *line])
    return lines


class Preflight(Dialog[None]):
    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__()
        self.problems = problems

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = "pre-flight"
            frame.border_subtitle = "an error forbids writing · Esc closes"
            with VerticalScroll():
                width = min(92, self.app.size.width - 10)
                yield Static(self.text(problem_lines(self.problems, width)))
