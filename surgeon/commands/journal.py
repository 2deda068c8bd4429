"""`surgeon journal`: the trials of a model, listed, compared, exported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.engine_options import require_file
from surgeon.commands.options.parser import Parser
from surgeon.commands.printing.text_table import table
from surgeon.errors import SurgeonError
from surgeon.figures import size
from surgeon.json_text import json_text
from surgeon.terminal import escaped

if TYPE_CHECKING:
    from surgeon.trials.journal import Journal, Trial

DESCRIPTION = """Every variant of MODEL (the source) and its measurements. `surgeon perplexity --journal MODEL`,
`surgeon bench --journal MODEL` and the screen write it."""


def _parser() -> Parser:
    parser = Parser(prog="surgeon journal", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="the source model")
    parser.add_argument("--sort", default="when", metavar="FIGURE", help="when, size, bpw, ppl, mean_kld, a task ...")
    parser.add_argument("--front", action="store_true", help="only the Pareto front of size and mean KLD")
    parser.add_argument("--compare", nargs=2, metavar="ID", help="two trials side by side")
    parser.add_argument("--best", metavar="ID", help="mark the best one")
    parser.add_argument("--forget", metavar="ID", help="remove a trial from the list")
    parser.add_argument("--recipe", metavar="ID", help="print the recipe of a trial")
    parser.add_argument("--card", "--markdown", dest="markdown", action="store_true", help="tables for a model card")
    parser.add_argument("--json", action="store_true")
    return parser


def main(arguments: list[str]) -> int:
    from surgeon.trials.journal import Journal

    options = _parser().parse_args(arguments)
    journal = Journal.of_model(Path(require_file(options.model)))
    if options.best:
        journal.mark_best(options.best)
    if options.forget:
        journal.forget(options.forget)
    if options.compare:
        first, second = (_one(journal, name) for name in options.compare)
        print(_comparison(first, second))
    elif options.recipe:
        print(_one(journal, options.recipe).recipe, end="")
    else:
        print(_listing(journal, options))
    return 0


def _one(journal: Journal, name: str) -> Trial:
    for trial in journal.trials():
        if trial.id == name:
            return trial
    raise SurgeonError(f"{journal.path}: has no trial {name}")


def _listing(journal: Journal, options: argparse.Namespace) -> str:
    from dataclasses import asdict

    from surgeon.trials.figure_table import shown_in
    from surgeon.trials.tables import markdown, measured_front, sorted_by

    trials = journal.trials()
    on_front = measured_front(trials)
    if options.front:
        trials = sorted_by((trial for trial in trials if trial.id in on_front), "size")
    elif options.sort != "when":
        trials = sorted_by(trials, options.sort)
    if options.json:
        return json_text([asdict(trial) for trial in trials])
    if not trials:
        return escaped(f"no trials yet ({journal.path})")
    if options.markdown:
        return markdown(trials).rstrip("\n")
    columns = [column for column in shown_in("list") if any(trial.figure(column.key) is not None for trial in trials)]
    rows = [
        [
            ("* " if trial.best else "  ") + trial.id,
            trial.label,
            size(trial.size),
            *(figure.with_error(trial) or "-" for figure in columns),
            "front" if trial.id in on_front else "",
        ]
        for trial in trials
    ]
    return table(["  trial", "label", "size", *(figure.name for figure in columns), ""], rows)


def _comparison(first: Trial, second: Trial) -> str:
    from surgeon.trials.tables import compare, unlike_conditions

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.6g}"

    rows = [[row.name, cell(row.first), cell(row.second), cell(row.change)] for row in compare(first, second)]
    warnings = [escaped(f"measured differently: {text}") for text in unlike_conditions(first, second)]
    return "\n".join([table(["", first.label, second.label, "change"], rows), *warnings])
