"""The queue as lines of spans. Pure."""

from __future__ import annotations

from surgeon.session.queue import DONE, FAILED, KINDS, RUNNING, WAITING, Entry, Queue
from surgeon.trials.records import recipe_words
from surgeon.tui.drawing.spans import Line, clean, fit, fit_end, wrap

_SIGNS = {WAITING: ("·", "muted"), RUNNING: ("▸", "accent"), DONE: ("✓", "good"), FAILED: ("!", "warning")}
_KIND = 22  # cells of what it is called
_PAUSED = (" · paused, P resumes", "warning")


def queue_head(queue: Queue) -> Line:
    """`queue  3 waiting, paused`."""
    line: Line = [("queue  ", "title")]
    if not queue.entries and not queue.paused:
        return [*line, ("empty: a base types to write and measure, r a file, ^L in any form", "muted")]
    if not queue.entries:
        return [*line, ("empty", "muted"), _PAUSED]
    counts = [(state, sum(entry.state == state for entry in queue.entries)) for state in _SIGNS]
    line.append((", ".join(f"{count} {state}" for state, count in counts if count), "text"))
    if queue.paused:
        line.append(_PAUSED)
    return line


def entry_line(entry: Entry, place: int, status: str, width: int) -> Line:
    """place: from 1; status: how far the running one is."""
    sign, role = _SIGNS[entry.state]
    note = status if entry.state == RUNNING else entry.note
    room = max(12, (width - _KIND - 8) // 2 - 4)
    return [
        (f"{place:>3} ", "faint"),
        (f"{sign} ", role),
        (fit(KINDS[entry.kind], _KIND), "text" if entry.state in (WAITING, RUNNING) else "muted"),
        (fit_end(clean(entry.title), room) + "  ", "strong" if entry.state == RUNNING else "text"),
        (fit(clean(note), max(0, width - _KIND - 8 - room)).rstrip(), "warning" if entry.state == FAILED else "muted"),
    ]


def entry_lines(entry: Entry, width: int) -> list[Line]:
    """All of an entry: what came of it, and what was answered."""
    lines: list[Line] = []
    if entry.note:
        lines += wrap(clean(entry.note), width, "warning" if entry.state == FAILED else "text")
    shown = [f"{key} {clean(value)}" for key, value in entry.answers.items() if value and key not in _UNSEEN]
    lines += wrap(" · ".join(shown), width, "muted")
    lines += [[(fit(clean(word), width).rstrip(), "faint")] for word in recipe_words(entry.recipe)]
    return lines


_UNSEEN = ("recipes", "trial", "replace")  # answers that only the program reads
