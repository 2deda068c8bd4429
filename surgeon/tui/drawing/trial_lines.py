"""Rows of the journal as lines of spans. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from surgeon.trials.figure_table import FIGURES, TABLE, Figure, shown_in
from surgeon.trials.journal import Trial
from surgeon.trials.records import recipe_words
from surgeon.trials.tables import compare, measured_alike, measured_on, unlike_conditions
from surgeon.tui.drawing.spans import Line, clean, fit, fit_end, flow, wrap

NAME_LEAST = 18
_FIGURE = 22  # cells of a figure's name
_NONE = "–"  # not measured


@dataclass(frozen=True)
class TrialColumn:
    """key: what it sorts by; rank: the lower, the longer it stays when space gets scarce.

    text: of a trial beside the KL divergence of the best (None: not known).
    """

    key: str
    title: str
    width: int
    rank: int
    text: Callable[[Trial, float | None], str]
    highest_first: bool = False
    sorts: bool = True


def _cell(figure: Figure) -> Callable[[Trial, float | None], str]:
    def text(trial: Trial, _: float | None) -> str:
        value = trial.figure(figure.key)
        return _NONE if value is None else figure.text(value).removesuffix(figure.unit)

    return text


def factor(trial: Trial, best: float | None) -> str:
    """How many times the best one's KL divergence: `1.83×`."""
    value = trial.figure("mean_kld")
    if value is None or not best:
        return _NONE
    return f"{value / best:.2f}×" if value < 100 * best else f"{value / best:.0f}×"


def best_divergence(trials: Sequence[Trial]) -> float | None:
    """The KL divergence of the trial marked as the best, else the least of those measured alike."""
    alike = measured_alike(trials)
    known = [(trial.best, value) for trial in trials if trial.id in alike and (value := trial.figure("mean_kld"))]
    marked = [value for best, value in known if best]
    return next(iter(marked), min((value for _, value in known), default=None))


def when(trial: Trial) -> str:
    """`11-23 20:05`, in local time."""
    try:
        return datetime.fromisoformat(trial.when).astimezone().strftime("%m-%d %H:%M")
    except ValueError:
        return trial.when[:11]


_FACTOR = TrialColumn("factor", "× best", 7, 4, factor, sorts=False)
_MEASURED = [
    TrialColumn(
        figure.key, place.title, place.width, place.rank, _cell(figure), highest_first=figure.better == "higher"
    )
    for figure in TABLE
    if (place := figure.column) is not None
]
_AFTER = next(place for place, column in enumerate(_MEASURED) if column.key == "mean_kld_error") + 1
COLUMNS: tuple[TrialColumn, ...] = (
    *_MEASURED[:_AFTER],
    _FACTOR,
    *_MEASURED[_AFTER:],
    TrialColumn("when", "when", 11, 9, lambda trial, _: when(trial), highest_first=True),
)


def filled_columns(trials: Sequence[Trial], best: float | None = None) -> tuple[TrialColumn, ...]:
    """Those that say something of a trial; where there are no trials, all that there will be."""
    filled = tuple(column for column in COLUMNS if any(column.text(trial, best) != _NONE for trial in trials))
    return filled if trials else COLUMNS


class Layout(NamedTuple):
    """The columns in order, and the cells that the names have."""

    columns: tuple[TrialColumn, ...]
    name: int


def layout(width: int, among: Sequence[TrialColumn] = COLUMNS, names: Iterable[str] = ()) -> Layout:
    """What fits into `width` cells beside marks and names; names: they take no more room than the longest of them,
    and figures stand back for them up to a third of the width."""
    longest = max((len(clean(name)) for name in names), default=0)
    least = max(NAME_LEAST, min(longest, width // 3))
    room = width - 4 - least
    kept = set()
    for column in sorted(among, key=lambda column: column.rank):
        if column.width + 2 > room:
            break
        kept.add(column.key)
        room -= column.width + 2
    name = max(NAME_LEAST, min(least + room, longest or width))
    return Layout(tuple(column for column in among if column.key in kept), name)


def head_line(shown: Layout, sort: str, descending: bool) -> Line:
    """The titles; the column that sorts carries an arrow."""
    columns, name = shown
    line: Line = [(fit("    trial", name + 4), "accent" if sort == "label" else "head")]
    for column in columns:
        arrow = ("▼" if descending else "▲") if column.key == sort else ""
        line.append(("  " + fit(column.title + arrow, column.width, "right"), "accent" if arrow else "head"))
    return line


def trial_line(trial: Trial, shown: Layout, *, chosen: bool, sign: str = "", best: float | None = None) -> Line:
    """One trial: ● chosen for comparison, * the best, and one of `signs`; best: KL divergence of the best."""
    columns, name = shown
    line: Line = [
        ("● " if chosen else "  ", "marked"),
        ("*" if trial.best else " ", "changed"),
        (sign or " ", "warning" if sign == "≠" else "accent"),
        (fit_end(clean(trial.label), name), "strong" if trial.best else "text"),
    ]
    for column in columns:
        unlike = sign == "≠" and (column is _FACTOR or _is_of_text(column.key))
        role = "faint" if unlike else "text" if column.rank < 6 else "muted"
        line.append(("  " + fit(column.text(trial, None if unlike else best), column.width, "right"), role))
    return line


def _is_of_text(key: str) -> bool:
    return key in FIGURES and FIGURES[key].of_text


def ordered(trials: Sequence[Trial], sort: str, descending: bool) -> list[Trial]:
    """By a column; trials that lack the figure come last."""
    if sort in ("when", "label"):
        by_text: Callable[[Trial], str] = lambda trial: trial.when if sort == "when" else trial.label  # noqa: E731
        return sorted(trials, key=by_text, reverse=descending)
    values = [(trial.figure(sort), trial) for trial in trials]
    known = sorted(((value, trial) for value, trial in values if value is not None), key=lambda pair: pair[0])
    ranked = [trial for _, trial in (reversed(known) if descending else known)]
    return ranked + [trial for value, trial in values if value is None]


def figure_lines(trial: Trial, width: int = 70) -> list[Line]:
    """All that was measured on a trial, a few lines of at most `width` cells."""
    found = trial.measured
    values = [(figure.name, text) for figure in shown_in("about") if (text := figure.with_error(trial))]
    lines = _flow(values, width)
    if found.conditions:
        lines.append([(clean(measured_on(trial)), "faint")])
    tasks = [
        (clean(name), f"{score:.2f}%" + (f" ±{error:.2f}" if error else ""))
        for name, (score, error) in found.tasks.items()
    ]
    speeds = [
        (name, f"{speed.mean:.1f} ±{speed.deviation:.1f} t/s, best {speed.best:.1f}")
        for name, speed in found.speed.items()
    ]
    lines += [*_flow(tasks, width), *_flow(speeds, width)]
    return lines or [[("not measured yet: e measures", "faint")]]


def _flow(pairs: Sequence[tuple[str, str]], width: int) -> list[Line]:
    """Names and values one after the other, as many to a line as fit."""
    return flow(([(f"{name} ", "muted"), (f"{value}   ", "text")] for name, value in pairs), width)


def compare_lines(first: Trial, second: Trial, width: int) -> list[Line]:
    """Every figure of the two side by side with the change, what was measured differently, and the recipes' lines."""
    cell = max(12, min(22, (width - _FIGURE - 2) // 3))
    lines: list[Line] = [
        [(" " * _FIGURE, ""), *((fit_end(clean(t.label), cell - 1, "right") + " ", "strong") for t in (first, second))]
    ]
    for row in compare(first, second):
        change = row.change
        texts = (row.first, row.second, change)
        cells = ["–" if value is None else _compared(row.name, value, place == 2) for place, value in enumerate(texts)]
        name = FIGURES[row.name].name if row.name in FIGURES else row.name
        role = "muted" if not change else "changed"
        lines.append(
            [
                (fit(clean(name), _FIGURE), "muted"),
                *((fit(text, cell - 1, "right") + " ", "text") for text in cells[:2]),
                (fit(cells[2], min(cell, 14), "right"), role),
            ]
        )
    unlike = unlike_conditions(first, second)
    for text in unlike:
        lines += wrap(f"measured differently: {clean(text)}", width, "warning")
    return [*lines, [], *recipe_difference(first, second, width)]


def _compared(name: str, value: float, signed: bool) -> str:
    text = FIGURES[name].text(abs(value)) if name in FIGURES else f"{abs(value):.6g}"
    return f"{'−' if value < 0 else '+' if signed and value > 0 else ''}{text}"


def recipe_difference(first: Trial, second: Trial, width: int) -> list[Line]:
    """Lines that only one of the two recipes has."""
    a, b = ([clean(word) for word in recipe_words(trial.recipe)] for trial in (first, second))
    lines: list[Line] = [[("recipes", "title")]]
    lines += [[(fit(f"- {line}", width).rstrip(), "muted")] for line in a if line not in b]
    lines += [[(fit(f"+ {line}", width).rstrip(), "changed")] for line in b if line not in a]
    return lines if len(lines) > 1 else [*lines, [("no difference", "muted")]]
