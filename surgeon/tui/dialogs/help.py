"""All keys, from the table of actions, and what the figures mean and are worth, from help/*.md."""

from __future__ import annotations

from importlib import resources
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from surgeon.tui.actions import GROUPS, keys_of
from surgeon.tui.config import config_path
from surgeon.tui.dialogs.base import Dialog
from surgeon.tui.spans import Line, fit, wrap

PAGES = ("statistics", "types", "filters", "terminal")


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


class Help(Dialog[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
        Binding("q,question_mark", "leave", show=False),
    ]

    def __init__(self, keymap: dict[str, str]) -> None:
        super().__init__()
        self.keymap = keymap

    def compose(self) -> ComposeResult:
        width = min(90, self.app.size.width - 8)
        lines = key_lines(self.keymap, width)
        for page in PAGES:
            lines += page_lines(page, width)
        lines += [[("Keys, colours and columns can be set in", "muted")], [(str(config_path()), "text")]]
        with Vertical(classes="dialog tall") as frame:
            frame.border_title = "help"
            frame.border_subtitle = "↑ ↓ PgUp PgDn move · Esc closes"
            with VerticalScroll():
                yield Static(self.text(lines))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)
