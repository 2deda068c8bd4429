"""A line to type in. Tab completes a path, ↑ or Ctrl+P bring back earlier answers, several lines can be pasted."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.suggester import Suggester
from textual.widgets import Input

from surgeon.tui.answers import add_to_history, history_of

_CONTINUED = re.compile(r"\\\s*\n\s*")  # a line of a shell command that goes on in the next one


class Entry(Input):
    """endings: of the files that a path may mean (None: no path); history: the name of the list of earlier answers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", show=False),
        Binding("ctrl+p", "recall(1)", show=False),
        Binding("ctrl+n", "recall(-1)", show=False),
    ]

    def __init__(
        self,
        value: str = "",
        *,
        endings: tuple[str, ...] | None = None,
        history: str = "",
        id: str | None = None,  # noqa: A002 — as textual calls it
        placeholder: str = "",
    ) -> None:
        self.endings, self.history = endings, "paths" if endings is not None else history
        suggester = None if endings is None else PathSuggester(endings, several=isinstance(self, LastPathEntry))
        super().__init__(value, id=id, placeholder=placeholder, suggester=suggester, select_on_focus=False)
        self._recalled = -1  # place in the history; -1: what is being typed
        self._own = value

    def on_key(self, event: events.Key) -> None:
        """A path that begins anew after a folder's slash takes the place of what is there."""
        begins = self.endings is not None and event.character in ("/", "~") and self.value.endswith("/")
        if begins and self.cursor_position == len(self.value):
            self.value = ""

    def action_complete(self) -> None:
        """As far as the path is certain; where there is nothing to complete, to the next field."""
        found = completed(self.value, self.endings) if self.endings is not None else None
        if found is None:
            self.screen.focus_next()
        else:
            self.value = found
            self.cursor_position = len(found)

    def action_recall(self, step: int) -> None:
        """An earlier answer, or a later one."""
        known = [text for text in history_of(self.history) if self._fits(text)] if self.history else []
        to = self._recalled + step
        if not -1 <= to < len(known):
            return
        if self._recalled == -1:
            self._own = self.value
        self._recalled = to
        self.value = self._own if to == -1 else known[to]
        self.cursor_position = len(self.value)

    def keep(self) -> None:
        """After the answer was taken: it can be recalled from now on."""
        if self.history and self.value.strip():
            add_to_history(self.history, self.value)

    def _fits(self, text: str) -> bool:
        return not self.endings or text.endswith(self.endings)

    def _on_paste(self, event: events.Paste) -> None:
        """All lines, where Input would take the first; a continued line of a shell is one."""
        event.prevent_default()
        event.stop()
        self.replace(one_line(event.text), *self.selection)


class LastPathEntry(Entry):
    """Several paths with commas between; the last one is completed."""

    def action_complete(self) -> None:
        before, last = apart(self.value)
        found = completed(last, self.endings or ())
        if found is None:
            self.screen.focus_next()
        else:
            self.value = before + found
            self.cursor_position = len(self.value)


class PathSuggester(Suggester):
    """Shows the rest of the first path that begins so."""

    def __init__(self, endings: tuple[str, ...] = (), *, several: bool = False) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.endings, self.several = endings, several

    async def get_suggestion(self, value: str) -> str | None:
        before, last = apart(value) if self.several else ("", value)
        found = candidates(last, self.endings)
        return before + found[0] if found else None


def apart(value: str) -> tuple[str, str]:
    """Paths with commas between, and the last one without the blanks before it."""
    last = value.rpartition(",")[2].lstrip(" ") if "," in value else value
    return value[: len(value) - len(last)], last


def candidates(value: str, endings: tuple[str, ...]) -> list[str]:
    """The folders (with a slash) and fitting files whose path begins with `value`, in order."""
    folder, slash, start = value.rpartition("/")
    base = Path((folder + slash) or ".").expanduser()
    found = []
    try:
        for entry in sorted(os.scandir(base), key=lambda entry: entry.name):
            if not entry.name.startswith(start) or (not start and entry.name.startswith(".")):
                continue
            if entry.is_dir():
                found.append(f"{folder}{slash}{entry.name}/")
            elif not endings or entry.name.endswith(endings):
                found.append(f"{folder}{slash}{entry.name}")
    except OSError:
        return []
    return [path for path in found if path != value]


def completed(value: str, endings: tuple[str, ...]) -> str | None:
    """`value` with what all paths that begin so have in common; None where that adds nothing."""
    common = os.path.commonprefix(candidates(value, endings))  # noqa: RUF071 — letters are what is wanted
    return common if len(common) > len(value) else None


def one_line(pasted: str) -> str:
    """Pasted text as one line: its lines with `;` between, a line of a shell command with what continues it."""
    lines = [line.strip() for line in _CONTINUED.sub(" ", pasted.replace("\r", "\n")).split("\n")]
    return "; ".join(filter(None, lines))
