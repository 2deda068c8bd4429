"""All keys, from the table of actions, and what the figures mean and are worth, from help/*.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from importlib import resources
from typing import ClassVar

from textual.binding import Binding, BindingType

from surgeon.session.metrics import METRICS
from surgeon.tui.config import config_path
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.cells import COLUMNS
from surgeon.tui.drawing.spans import Line, fit, wrap
from surgeon.tui.drawing.theme import ROLES
from surgeon.tui.keys import BY_ID, GROUPS, keys_of

PAGES = ("statistics", "map", "measure", "types", "experts", "filters", "terminal")


def key_lines(keymap: dict[str, str], width: int) -> list[Line]:
    lines: list[Line] = []
    for title, group in GROUPS.items():
        lines += [[(title, "title")]]
        for action in group:
            keys = " ".join(keys_of(action, keymap))
            first, *rest = wrap(action.help, width - 16, "text")
            lines.append([(fit(f"  {keys}", 16), "key"), *first])
            lines.extend([(" " * 16, ""), *line] for line in rest)
        lines.append([])
    return lines


def page_lines(name: str, width: int) -> list[Line]:
    """A help page: `# ` titles, indented lines as they are, paragraphs wrapped."""
    text = resources.files("surgeon.tui").joinpath("help", f"{name}.md").read_text(encoding="utf-8")
    text = text.replace("{metrics}", metric_lines())
    lines: list[Line] = []
    for block in text.strip().split("\n\n"):
        if block.startswith("# "):
            lines.append([(block[2:], "title")])
            continue
        if block.startswith("    "):
            lines += [[(line[2:], "text")] for line in block.splitlines()]
        else:
            lines += wrap(block, width - 2, "muted", "")
        lines.append([])
    return lines


def metric_lines() -> str:
    """The metrics as an indented block: title and help of each, wrapped to 56 cells."""
    lines: list[str] = []
    for metric in METRICS.values():
        first, *rest = textwrap.wrap(metric.help, 46)
        lines += [f"    {metric.title:<9}{first}", *(f"{'':13}{line}" for line in rest)]
    return "\n".join(lines)


def config_lines(width: int) -> list[Line]:
    """Where the config file is, and the words it may hold."""
    lines: list[Line] = [[("It is ", "muted"), (str(config_path()), "text")], []]
    words: dict[str, Iterable[str]] = {"keys": BY_ID, "columns": COLUMNS, "metric": METRICS, "colours": ROLES}
    for title, known in words.items():
        lines.append([(title, "text")])
        lines += [[("  ", ""), *line] for line in wrap(" ".join(known), width - 4, "muted")]
        lines.append([])
    return lines


class Help(Reader):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark", "leave", show=False)]

    def __init__(self, keymap: dict[str, str]) -> None:
        super().__init__("help", "↑ ↓ PgUp PgDn move · Esc close", tall=True)
        self.keymap = keymap

    def lines(self, width: int) -> list[Line]:
        lines = key_lines(self.keymap, width)
        for page in PAGES:
            lines += page_lines(page, width)
        return [*lines, *config_lines(width)]
