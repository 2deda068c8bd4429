"""Trials side by side: comparison, the front of size against KL divergence, tables for a model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from surgeon import figures
from surgeon.figures import size
from surgeon.trials.figure_table import shown_in
from surgeon.trials.journal import Trial

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Difference:
    """One figure of two trials; None where one was not measured."""

    name: str
    first: float | None
    second: float | None

    @property
    def change(self) -> float | None:
        """second − first."""
        return None if self.first is None or self.second is None else self.second - self.first


def compare(first: Trial, second: Trial) -> list[Difference]:
    """All figures that at least one of the two has, tasks and speeds last."""
    names = [figure.key for figure in shown_in("compare")]
    for trial in (first, second):
        names += [name for name in (*trial.measured.tasks, *trial.measured.speed) if name not in names]
    rows = [Difference(name, first.figure(name), second.figure(name)) for name in names]
    return [row for row in rows if row.first is not None or row.second is not None]


def unlike_conditions(first: Trial, second: Trial) -> list[str]:
    """Why figures of the two cannot be compared: `text: a.txt, b.txt`; empty where they can."""
    a, b = first.measured.conditions, second.measured.conditions
    return [f"{name}: {a[name]}, {b[name]}" for name in a if name in b and a[name] != b[name]]


def front(trials: Iterable[Trial], figure: str = "mean_kld") -> list[Trial]:
    """The trials that no other beats in both size and `figure` (less is better), smallest first."""
    placed = [(trial.size, value, trial) for trial in trials if (value := trial.figure(figure)) is not None]
    kept: list[Trial] = []
    least = float("inf")
    for _, value, trial in sorted(placed, key=lambda row: row[:2]):
        if value < least:
            kept.append(trial)
            least = value
    return kept


def sorted_by(trials: Iterable[Trial], figure: str, *, descending: bool = False) -> list[Trial]:
    """By a figure; trials without it come last."""

    def key(trial: Trial) -> tuple[bool, float]:
        value = trial.figure(figure)
        return value is None, 0.0 if value is None else -value if descending else value

    return sorted(trials, key=key)


def markdown(trials: Sequence[Trial]) -> str:
    """The tables of a model card: sizes, perplexity and KL divergence, tasks, speed; only those with rows."""
    tables = (_sizes(trials), _scores(trials), _tasks(trials), _speeds(trials))
    return "\n\n".join(table for table in tables if table) + "\n"


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    line = "| " + " | ".join(header) + " |"
    rule = "|---|" + "---:|" * (len(header) - 1)
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"### {title}", "", line, rule, *body])


def _name(trial: Trial) -> str:
    return f"**{trial.label}**" if trial.best else trial.label


def _sizes(trials: Sequence[Trial]) -> str:
    largest = max((max(trial.size, trial.source_size) for trial in trials), default=0)
    unit, factor = next((pair for pair in _UNITS if largest >= pair[1]), _UNITS[-1])
    rows = []
    for trial in trials:
        source = trial.source_size
        shrinkage = f"{100 * (1 - trial.size / source):.1f}%" if source else ""
        bpw = f"{trial.bpw:.2f}" if trial.bpw is not None else ""
        before = f"{source / factor:.2f}" if source else ""
        rows.append([_name(trial), before, f"{trial.size / factor:.2f}", shrinkage, bpw])
    return _table(f"Sizes (in {unit})", ["Model", "Source", "Size", "Shrinkage", "BPW"], rows)


def _scores(trials: Sequence[Trial]) -> str:
    columns = shown_in("card")
    scored = [trial for trial in trials if "ppl" in trial.measured.figures]
    rows = [
        [_name(trial), *(figure.with_error(trial, figure.card_form) or "N/A" for figure in columns)] for trial in scored
    ]
    header = ["Model", *(figure.card or figure.name for figure in columns)]
    windows = [measured_on(trial) for trial in scored]
    alike = len(set(windows)) == 1
    if not alike:  # figures that cannot be compared must not stand side by side without saying so
        header.append("Measured on")
        rows = [[*row, text] for row, text in zip(rows, windows, strict=True)]
    table = _table("Perplexity and KL divergence", header, rows)
    return f"{table}\n\nMeasured on {windows[0]}." if table and alike and windows[0] else table


def measured_on(trial: Trial) -> str:
    """`a.txt, 8 chunks of 512 tokens`; empty where it is not known."""
    found = trial.measured.conditions
    words = [str(found["text"])] if "text" in found else []
    if "n_chunks" in found and "n_ctx" in found:
        words.append(f"{figures.counted(found['n_chunks'], 'chunk')} of {found['n_ctx']} tokens")
    return ", ".join(words)


def _tasks(trials: Sequence[Trial]) -> str:
    names = sorted({name for trial in trials for name in trial.measured.tasks})
    rows = []
    for trial in trials:
        tasks = trial.measured.tasks
        if not tasks:
            continue
        cells = [_score(*tasks[name]) if name in tasks else "" for name in names]
        # An average over other tasks than the neighbours' would mislead.
        average = f"{sum(tasks[name][0] for name in names) / len(names):.2f}" if len(tasks) == len(names) else ""
        rows.append([_name(trial), *cells, average])
    return _table("Task scores", ["Model", *_titles(names), "Avg Score"], rows)


# How a card calls a task whose file, or llama-perplexity's option, is called so, perhaps with `-test_400` behind it.
_TASKS = {
    "arc-challenge": "ARC-Challenge",
    "arc-easy": "ARC-Easy",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "truthfulqa": "Truthful QA",
    "winogrande": "WinoGrande",
}


def _titles(names: Sequence[str]) -> list[str]:
    """The benchmark of each task; the name itself where that is unknown, or the same as another's."""
    found = [next((title for start, title in _TASKS.items() if name.lower().startswith(start)), name) for name in names]
    return [title if found.count(title) == 1 else name for title, name in zip(found, names, strict=True)]


def _score(score: float, error: float) -> str:
    return f"{score:.4f} ±{error:.4f}" if error else f"{score:.2f}"


def _speeds(trials: Sequence[Trial]) -> str:
    rows = [
        [
            _name(trial),
            size(trial.size),
            name,
            f"{speed.mean:.2f} ±{speed.deviation:.2f}",
            f"{speed.best:.2f}",
        ]
        for trial in trials
        for name, speed in trial.measured.speed.items()
    ]
    return _table("Tokens per second", ["Model", "Size", "Test", "t/s", "Best"], rows)


def measured_alike(trials: Sequence[Trial]) -> set[str]:
    """Trials whose figures can be compared with the newest ones: same text, context, chunks; by their ids."""
    placed = [(trial, key) for trial in trials if (key := _windows(trial)) is not None]
    if not placed:
        return set()
    compared = [pair for pair in placed if "mean_kld" in pair[0].measured.figures]
    reference = max(compared or placed, key=lambda pair: pair[0].when)[1]
    return {trial.id for trial, key in placed if key == reference}


def _windows(trial: Trial) -> tuple[object, ...] | None:
    """What the perplexity and KL divergence of a trial were measured on; None where they were not."""
    found = trial.measured
    if "ppl" not in found.figures:
        return None
    return tuple(found.conditions.get(name) for name in ("text", "n_ctx", "n_chunks"))


def measured_front(trials: Sequence[Trial]) -> set[str]:
    """The ids of those that no other beats in size and KL divergence, among `measured_alike`."""
    alike = measured_alike(trials)
    return {trial.id for trial in front(trial for trial in trials if trial.id in alike)}


def signs(trials: Sequence[Trial]) -> dict[str, str]:
    """Trial id -> ◆ on the front, ≠ measured on another text or other chunks than the newest."""
    alike, best = measured_alike(trials), measured_front(trials)
    unlike = {trial.id: "≠" for trial in trials if trial.id not in alike and _windows(trial) is not None}
    return unlike | dict.fromkeys(best, "◆")
