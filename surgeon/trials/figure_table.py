"""The figures of a trial: one row here, and the code that measures it, adds a figure everywhere.

The recorder keeps what the table names; the journal's listings, the screen's columns, the comparison, the model card
and `--json` read it. `better` says which end is good; a figure with `of_text` means nothing beside one of another text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from surgeon import figures
from surgeon.trials.journal import Trial

Better = Literal["lower", "higher", "closer to 1", ""]
Place = Literal["list", "about", "compare", "card", "running"]


@dataclass(frozen=True)
class Column:
    """Of the screen's table. rank: the lower, the longer it stays when space gets scarce."""

    title: str
    width: int
    rank: int


@dataclass(frozen=True)
class Figure:
    """One figure. key: in the engine's values, the journal's file and --json; name: as people call it.

    Shown is `factor` × the value in format `form` with `unit` behind it, or what `shown` makes of it. error: key of its
    standard error; card, card_form: heading and format in the model card, where those are others; kept: recorded from
    the engine's values.
    """

    key: str
    name: str
    better: Better = "lower"
    form: str = ".6f"
    factor: float = 1.0
    unit: str = ""
    error: str = ""
    card: str = ""
    card_form: str = ""
    column: Column | None = None
    places: tuple[Place, ...] = ()
    of_text: bool = True
    kept: bool = True
    shown: Callable[[float], str] | None = None

    def text(self, value: float, form: str = "") -> str:
        """The value as shown, with its unit."""
        return self.shown(value) if self.shown is not None else f"{self.factor * value:{form or self.form}}{self.unit}"

    def with_error(self, trial: Trial, form: str = "") -> str:
        """The trial's value and its standard error, if that is known; empty where it was not measured."""
        value = trial.figure(self.key)
        if value is None:
            return ""
        error = trial.measured.figures.get(self.error) if self.error else None
        return self.text(value, form) + ("" if error is None else f" ±{self.text(error, form)}")


TABLE: tuple[Figure, ...] = (
    Figure("size", "size", shown=figures.size, column=Column("size", 8, 0), places=("compare",),
           of_text=False, kept=False),
    Figure("bpw", "bpw", form=".2f", column=Column("bpw", 5, 2), places=("compare",), of_text=False, kept=False),
    Figure("ppl", "PPL", form=".4f", error="ppl_error", card="μPPL", card_form=".6f", column=Column("PPL", 8, 5),
           places=("list", "about", "compare", "card", "running")),
    Figure("ppl_error", "±", form=".3g", column=Column("±", 7, 10)),
    Figure("ppl_base", "PPL of the original", form=".4f"),
    Figure("ppl_ratio", "PPL ratio", "closer to 1", places=("compare",)),
    Figure("correlation", "correlation of ln PPL", "higher", ".2f", 100, "%", card="𝜌PPL", places=("compare", "card")),
    Figure("mean_kld", "KLD", error="mean_kld_error", card="μKLD", column=Column("KLD", 8, 1),
           places=("list", "about", "compare", "card", "running")),
    Figure("mean_kld_error", "± of KLD", form=".2g", column=Column("± KLD", 7, 3)),
    Figure("median_kld", "median KLD", places=("compare",)),
    Figure("kld_99", "99% KLD", form=".4f", places=("about", "compare")),
    Figure("kld_99.9", "99.9% KLD", form=".4f", places=("compare",)),
    Figure("kld_max", "maximum KLD", form=".4f"),
    Figure("rms_delta_p", "RMS Δp", "lower", ".3f", 100, "%", error="rms_delta_p_error",
           places=("about", "compare", "card")),
    Figure("rms_delta_p_error", "± of RMS Δp"),
    Figure("same_top", "same top", "higher", ".2f", 100, "%", error="same_top_error", card="Same top p",
           column=Column("same top", 8, 6), places=("list", "about", "compare", "card", "running")),
    Figure("same_top_error", "± of same top"),
    Figure("mean_cosine", "cosine of embeddings", "higher", error="mean_cosine_error",
           places=("list", "about", "compare")),
    Figure("mean_cosine_error", "± of cosine", form=".2g"),
    Figure("min_cosine", "lowest cosine of embeddings", "higher"),
    Figure("tasks", "tasks", "higher", ".2f", column=Column("tasks", 6, 8), of_text=False, kept=False),
    Figure("tg128", "tg128", "higher", ".1f", unit=" t/s", column=Column("tg t/s", 7, 7), of_text=False, kept=False),
    Figure("pp512", "pp512", "higher", ".0f", unit=" t/s", column=Column("pp t/s", 7, 11), of_text=False, kept=False),
    Figure("score", "score", "higher", ".4f", places=("running",), of_text=False, kept=False),
    Figure("tokens_per_second", "t/s", "higher", ".4f", places=("running",), of_text=False, kept=False),
)  # fmt: skip
FIGURES: dict[str, Figure] = {figure.key: figure for figure in TABLE}


def shown_in(place: Place) -> tuple[Figure, ...]:
    """The figures of one place, in the table's order."""
    return tuple(figure for figure in TABLE if place in figure.places)
