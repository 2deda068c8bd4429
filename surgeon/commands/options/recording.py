"""`--journal`: the journal that the figures of a run go to."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.commands.options.engine_options import require_file
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from surgeon.trials.journal import Journal


@dataclass(frozen=True)
class Recording:
    """The row of `output` in the journal of its source. recipe: the text that `output` was made by, '' for none."""

    journal: Journal
    source_size: int
    output: Path
    label: str
    recipe: str

    def keep(self, values: dict[str, Any], text: str = "") -> None:
        """Record the figures. text: the file they were measured on. Raises SurgeonError."""
        from surgeon.trials.records import measured, record

        found = measured(values, text=text)
        record(self.journal, self.output, self.label, measured=found, source_size=self.source_size, recipe=self.recipe)


def add_journal_options(parser: argparse.ArgumentParser) -> None:
    """`--journal --label --recipe`: where the figures are recorded."""
    parser.add_argument("--journal", metavar="SOURCE", help="record the figures in the journal of this source model")
    parser.add_argument("--label", default="", help="name of the trial in the journal (default: the file's name)")
    parser.add_argument("--recipe", metavar="FILE", help="the recipe MODEL was made by, kept with the trial")


def recording_of(options: argparse.Namespace) -> Recording | None:
    """What `--journal` asks for, None without it.

    To be called before anything is measured: a name that is wrong must not cost the figures. Raises SurgeonError.
    """
    if not options.journal:
        return None
    from surgeon.model.model import load_model
    from surgeon.trials.journal import Journal

    recipe, output = _text(options.recipe) if options.recipe else "", Path(options.model)
    source = load_model(require_file(options.journal))
    with source.file:
        journal, size = Journal.of_model(source.file.path), source.file.nbytes
    return Recording(journal, size, output, options.label or output.stem, recipe)


def _text(path: str) -> str:
    try:
        return Path(require_file(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise SurgeonError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SurgeonError(f"{path}: not a recipe: {error}") from error
