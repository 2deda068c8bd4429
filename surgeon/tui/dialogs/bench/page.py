"""The bench: the queue of work above the trials, which are sorted, compared, plotted, restored, exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import OptionList, Static

from surgeon.errors import SurgeonError
from surgeon.gguf.file import shards_of
from surgeon.trials.journal import Journal, Trial
from surgeon.trials.records import free_label, recipe_words
from surgeon.trials.tables import markdown, signs
from surgeon.tui.dialogs.base import LIST_KEYS, Choices, Dialog, Frame, text_of
from surgeon.tui.dialogs.bench.host import Bench
from surgeon.tui.dialogs.bench.plot import TrialPlot, planned_point
from surgeon.tui.dialogs.bench.queue_keys import QUEUE_KEYS, QueueKeys, Wish
from surgeon.tui.dialogs.bench.queue_lines import entry_lines
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.lists.picker import Entry, Picker
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.spans import Line, clean, elide_start, fit, flow, wrap
from surgeon.tui.drawing.trial_lines import (
    COLUMNS,
    best_divergence,
    compare_lines,
    figure_lines,
    filled_columns,
    head_line,
    layout,
    ordered,
    trial_line,
)
from surgeon.whole_files import write_whole
from surgeon.write_guard import Permit

Answer = TypeVar("Answer")
_KEYS = (
    ("Enter", "restore"), ("e", "measure"), ("a", "matrix"), ("r", "reference"), ("s", "sort"), ("Space c", "compare"),
    ("M", "map"), ("p", "plot"), ("b", "best"), ("n", "rename"), ("x", "delete"), ("m", "card"), ("Tab", "queue"),
    ("Esc", "close"),
)  # fmt: skip


class BenchPage(QueueKeys, Dialog[Wish]):
    """Edits queue and journal directly; restoring, measuring and the map are the screen's."""

    # With priority, so that all keys are dealt with in the order typed.
    BINDINGS: ClassVar[list[BindingType]] = [
        *LIST_KEYS,
        *(
            Binding(keys, action, show=False, priority=True)
            for keys, action in (
                ("tab,shift+tab", "other_list"),
                ("space", "choose"),
                ("enter", "take"),
                ("e", "measure"),
                ("s", "sort"),
                ("c", "compare"),
                ("M", "map"),
                ("p", "plot"),
                ("b", "best"),
                ("n", "rename"),
                ("x,delete", "delete"),
                ("m", "markdown"),
                ("a", "matrix"),
                ("r", "reference"),
                ("J", "shift(1)"),
                ("K", "shift(-1)"),
                ("P", "pause"),
                ("D", "remove_done"),
                ("q,L", "leave"),
            )
        ),
    ]

    def __init__(self, bench: Bench, journal: Journal, trials: list[Trial], model: Path) -> None:
        super().__init__()
        self.bench, self.journal, self.trials, self.model = bench, journal, trials, model
        self.sort, self.descending = "when", True
        self.chosen: list[str] = []

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog tall wide bench") as frame:
            frame.border_title = f"bench of {clean(self.model.name)}"
            yield Static(id="queue-head")
            yield Choices(id="queue")
            yield Static(id="heads")
            yield Choices(id="trials")
            yield Static(id="about")
            yield Static(id="keys")

    def on_mount(self) -> None:
        self.set_focus(self.trials_list)
        self.show_trials()
        self.show_queue()

    def resized(self) -> None:
        self.show_trials()
        self.show_queue()

    @property
    def trials_list(self) -> Choices:
        return self.query_one("#trials", Choices)

    @property
    def in_queue(self) -> bool:
        """Whether keys mean the queue, not the trials."""
        return self.focused is self.query_one("#queue", Choices)

    def action_list(self, move: str) -> None:
        getattr(self.query_one("#queue" if self.in_queue else "#trials", Choices), f"action_{move}")()

    def action_other_list(self) -> None:
        to_queue = not self.in_queue and bool(self.bench.queue.entries)
        self.set_focus(self.query_one("#queue" if to_queue else "#trials", Choices))
        self.about()
        self.show_keys()

    def action_take(self) -> None:
        if self.in_queue:
            self.take_entry()
        else:
            self.restore_trial()

    @on(OptionList.OptionSelected)
    def clicked(self, event: OptionList.OptionSelected) -> None:
        self.set_focus(event.option_list)
        self.action_take()

    @property
    def trial(self) -> Trial | None:
        """The one under the cursor."""
        key = self.trials_list.highlighted_id
        return next((trial for trial in self.trials if trial.id == key), None)

    def show_trials(self, at: str | None = None) -> None:
        theme, width = self.app.current_theme, self.room - 2
        sign, best = signs(self.trials), best_divergence(self.trials)
        shown = layout(width, filled_columns(self.trials, best), (trial.label for trial in self.trials))
        rows = []
        for trial in ordered(self.trials, self.sort, self.descending):
            line = trial_line(trial, shown, chosen=trial.id in self.chosen, sign=sign.get(trial.id, ""), best=best)
            rows.append((trial.id, text_of([line], theme)))
        empty: Line = [("no trials yet: w writes one, e measures the plan", "muted")]
        choices = self.trials_list
        choices.fill(rows or [("", text_of([empty], theme))], at)
        if at is not None:
            choices.highlighted = next((index for index, row in enumerate(rows) if row[0] == at), choices.highlighted)
        head = head_line(shown, self.sort, self.descending)
        self.query_one("#heads", Static).update(self.text([[(" ", ""), *head]]))
        self.show_keys()
        self.about()

    def show_keys(self) -> None:
        self.query_one("#keys", Static).update(self.text(key_lines(self.room, QUEUE_KEYS if self.in_queue else _KEYS)))

    @on(OptionList.OptionHighlighted)
    def about(self) -> None:
        """All figures and the recipe of the trial under the cursor, or what an entry of the queue asks for."""
        trial, height = self.trial, self._about_height()
        lines: list[Line] = [[("─" * self.room, "faint")]]
        entry = self.entry if self.in_queue else None
        if entry is not None:
            lines += entry_lines(entry, self.room)[:height]
        elif trial is not None:
            lines += about_lines(trial, self.room, height)
        lines += [[]] * (1 + height - len(lines))  # the lists above keep their place
        self.query_one("#about", Static).update(self.text(lines))

    def _about_height(self) -> int:
        """Lines below the rule: what the lists leave, at least a quarter of the screen; the same for every trial."""
        screen = self.app.size.height
        inside = int(0.9 * screen) - 2  # without the frame; besides the lists: two heads, the rule, two lines of keys
        queue = min(len(self.bench.queue.entries), int(0.3 * inside))
        return max(screen // 4, min(screen // 3, inside - 5 - queue - max(3, len(self.trials))))

    def reload(self, at: str | None = None) -> None:
        self.trials = self.journal.trials()
        self.chosen = [key for key in self.chosen if any(trial.id == key for trial in self.trials)]
        self.show_trials(at)

    def note(self, text: str, role: str = "accent") -> None:
        """One line in place of the keys."""
        self.query_one("#keys", Static).update(self.text([[], *wrap(clean(text), self.room, role)[:2]]))

    def edit(self, change: Callable[[], object], at: str | None = None) -> None:
        """Change the journal's file; an error is shown and changes nothing."""
        try:
            change()
            self.reload(at)
        except SurgeonError as error:
            self.note(str(error), "pruned")

    def ask(self, dialog: Dialog[Answer], answered: Callable[[Answer | None], None]) -> None:
        dialog.answered = answered
        self.app.push_screen(dialog)

    # --- what the keys do

    def restore_trial(self) -> None:
        trial = self.trial
        if trial is None:
            return
        if not trial.recipe:
            self.note("its recipe is unknown; it was measured from a file", "warning")
            return
        self.dismiss(("restore", trial))

    def action_measure(self) -> None:
        if self.trial is not None:
            self.dismiss(("evaluate", self.trial))

    def action_choose(self) -> None:
        trial = self.trial
        if trial is None:
            return
        if trial.id in self.chosen:
            self.chosen.remove(trial.id)
        else:
            self.chosen = [*self.chosen[-1:], trial.id]
        choices = self.trials_list
        at = choices.highlighted or 0
        self.show_trials(trial.id)
        choices.highlighted = min(at + 1, choices.option_count - 1)

    def action_sort(self) -> None:
        sorting = [column for column in filled_columns(self.trials) if column.sorts and "±" not in column.title]
        titles = {"label": "trial"} | {column.key: column.title for column in sorting}
        entries = [Entry(key, [(title, "text")]) for key, title in titles.items()]

        def taken(key: str | None) -> None:
            if key is None:
                return
            highest = any(column.highest_first for column in COLUMNS if column.key == key)
            self.sort, self.descending = key, not self.descending if key == self.sort else highest
            self.show_trials(self.trial.id if self.trial else None)

        self.ask(Picker("order by", entries, self.sort, "choose again to reverse"), taken)

    def action_compare(self) -> None:
        pair = self._pair()
        if pair is None:
            self.note("mark two with Space, or mark one and move to the other", "warning")
            return
        self.app.push_screen(Comparison(*pair))

    def action_map(self) -> None:
        """The plan on the table against this trial, tensor by tensor."""
        trial = self.trial
        if trial is None or not trial.recipe:
            self.note("its recipe is unknown: only trials with a plan can be shown on the map", "warning")
            return
        self.dismiss(("map", trial))

    def _pair(self) -> tuple[Trial, Trial] | None:
        """The two marked; or the one marked, else the best, and the one under the cursor."""
        marked = [trial for key in self.chosen for trial in self.trials if trial.id == key]
        if len(marked) == 2:
            return marked[0], marked[1]
        best = [trial for trial in self.trials if trial.best]
        here, other = self.trial, next(iter(marked or best), None)
        return (other, here) if here is not None and other is not None and other.id != here.id else None

    def action_plot(self) -> None:
        trial = self.trial
        now = planned_point(self.bench.session)
        self.app.push_screen(TrialPlot(self.trials, now=now, here=trial.id if trial else ""))

    def action_best(self) -> None:
        trial = self.trial
        if trial is not None:
            self.edit(lambda: self.journal.mark_best(trial.id))

    def action_rename(self) -> None:
        trial = self.trial
        if trial is None:
            return

        def check(text: str) -> tuple[bool, Line]:
            wanted = text.strip()
            taken = wanted != trial.label and free_label(wanted, self.trials) != wanted
            if not wanted or taken:
                return False, [("another trial has that name" if taken else "a name", "muted")]
            return True, [("Enter takes it", "accent")]

        def taken(text: str | None) -> None:
            if text is not None:
                self.edit(lambda: self.journal.add(replace(trial, label=text.strip())), trial.id)

        self.ask(Prompt("name of the trial", check, value=trial.label), taken)

    def action_delete(self) -> None:
        if self.in_queue:
            self.remove_entry()
            return
        trial = self.trial
        if trial is None:
            return
        question = f"Remove {trial.label} from the journal? Files on disk stay."

        def answered(yes: bool | None) -> None:
            if yes:
                self.edit(lambda: self.journal.forget(trial.id))

        self.ask(Confirm("delete", question, "remove it"), answered)

    def action_markdown(self) -> None:
        if not self.trials:
            return
        path = self.model.absolute().with_name(f"{self.model.stem}.trials.md")

        def check(text: str) -> tuple[bool, Line]:
            target = Path(text).expanduser()
            if not text or target.is_dir() or not target.parent.is_dir():
                return False, [("a file name in an existing folder", "muted")]
            return True, [("already exists: you will be asked" if target.exists() else "a new file", "accent")]

        prompt = Prompt(
            "Markdown tables", check, value=str(path), hint="Enter saves and copies (OSC 52)",
            endings=(".md",),
        )  # fmt: skip
        self.ask(prompt, self._export)

    def _export(self, text: str | None) -> None:
        if text is None:
            return
        path = Path(text).expanduser()
        tables = markdown(ordered(self.trials, self.sort, self.descending))
        self.app.copy_to_clipboard(tables)
        if not path.exists():
            self._save_card(path, tables, replace=False)
            return
        self.ask(
            Confirm("replace", f"{path} already exists. Overwrite it?", "replace it"),
            lambda yes: self._save_card(path, tables, replace=True) if yes else None,
        )

    def _save_card(self, path: Path, tables: str, *, replace: bool) -> None:
        inputs = (*shards_of(self.model), *self.journal.files)
        try:
            write_whole(path, tables, permit=Permit(inputs, replace=replace))
        except SurgeonError as error:
            self.note(str(error), "pruned")
        else:
            self.note(f"saved {path}, and copied")


class Comparison(Reader):
    """Two trials side by side."""

    def __init__(self, first: Trial, second: Trial) -> None:
        super().__init__("two trials", "↑ ↓ move · Esc close")
        self.first, self.second = first, second

    def lines(self, width: int) -> list[Line]:
        return compare_lines(self.first, self.second, width)


def key_lines(width: int, keys: Sequence[tuple[str, str]] = _KEYS) -> list[Line]:
    """The keys, in as many lines as they need."""
    return flow(([(key, "key"), (f" {word}  ", "muted")] for key, word in keys), width)


def about_lines(trial: Trial, width: int, height: int) -> list[Line]:
    """Figures, then what it is made of; in two columns where there is room."""
    half = width // 2 if width >= 110 else 0
    left = figure_lines(trial, width - half)
    right = recipe_lines(trial, width - half)
    if not half:
        return [*left, *right][:height]
    rows = max(len(left), len(right))
    lines: list[Line] = []
    for row in range(min(rows, height)):
        start = left[row] if row < len(left) else []
        used = sum(len(text) for text, _ in start)
        lines.append([*start, (" " * max(1, half - used), ""), *(right[row] if row < len(right) else [])])
    return lines


def recipe_lines(trial: Trial, width: int) -> list[Line]:
    """Where the file is and the recipe without what every one has."""
    lines: list[Line] = []
    if trial.output:
        gone = "" if Path(trial.output).is_file() else " (gone)"
        lines.append([("file ", "muted"), (elide_start(clean(trial.output), width - 12) + gone, "text")])
    return [*lines, *([(fit(clean(word), width - 2).rstrip(), "faint")] for word in recipe_words(trial.recipe))]
