"""A family of plans measured on one text and written: what a publisher of models does overnight.

Every step is in the journal, or on the disk, as soon as it is done, so that a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surgeon.measure.probing import Place, Prober, Text
from surgeon.measure.progress import Standing
from surgeon.resolve.resolution import Resolution
from surgeon.trials.journal import Journal, Trial
from surgeon.trials.records import measured, planned, recipe_text, record, record_plan, written_output
from surgeon.write.operation import Progress, WriteOptions, write


@dataclass(frozen=True)
class Rung:
    """One plan of the family. output: where its file goes, or None; label: how the journal calls it."""

    label: str
    resolution: Resolution
    output: Path | None = None


@dataclass
class Ladder:
    """Measures and writes the rungs; `trial(rung)` is its row of the journal afterwards."""

    prober: Prober
    journal: Journal
    rungs: tuple[Rung, ...]
    overwrite: bool = False

    def recipe(self, rung: Rung) -> str:
        """The rung's plan as the journal keeps it."""
        return recipe_text(rung.resolution.plan, self.prober.imatrix, rung.resolution.moments)

    def trial(self, rung: Rung) -> Trial | None:
        return planned(self.journal, self.recipe(rung))

    def measure(self, text: Text) -> Iterator[Standing]:
        """The divergence of the rungs not measured on this text yet. Raises as `Prober.probe`."""
        missing = {rung.label: rung for rung in self.rungs if not self._is_measured(rung, text)}
        if not missing:
            return
        base = yield from self.prober.base(text, Place(0, 2))
        wanted = {label: rung.resolution for label, rung in missing.items()}
        for item in self.prober.probe(base, wanted, "KL divergence", Place(1, 2)):
            if isinstance(item, Standing):
                yield item
                continue
            label, values = item
            rung = missing[label]
            figures = measured({"engine": self.prober.engine_version, **values}, text=str(text.path))
            source_size = self.prober.model.file.nbytes
            record_plan(self.journal, label, rung.resolution, self.recipe(rung), figures, source_size)

    def write(self) -> Iterator[Standing]:
        """The files that are not there yet. Raises SurgeonError, Cancelled."""
        for number, rung in enumerate(self.rungs):
            if rung.output is None or written_output(self.journal, self.recipe(rung)) == rung.output.absolute():
                continue
            options = WriteOptions(overwrite=self.overwrite)
            for item in write(rung.resolution, self.prober.imatrix, rung.output, options, self.prober.cancelled):
                if isinstance(item, Progress):
                    part = item.done_bytes / item.total_bytes if item.total_bytes else 1.0
                    note = f"{rung.output.name}: {item.tensor}"
                    yield Standing("writing", number, len(self.rungs), part, note, {}, item.seconds_left)
            self._keep(rung, rung.output)

    def _keep(self, rung: Rung, output: Path) -> None:
        """The row of the plan becomes that of its file: the figures are the same."""
        record(
            self.journal, output, rung.label, resolution=rung.resolution, recipe=self.recipe(rung),
            source_size=self.prober.model.file.nbytes,
        )  # fmt: skip

    def _is_measured(self, rung: Rung, text: Text) -> bool:
        trial = self.trial(rung)
        if trial is None or "mean_kld" not in trial.measured.figures:
            return False
        found = trial.measured.conditions
        wanted = {"text": text.path.name, "n_ctx": text.n_ctx, "n_chunks": text.n_chunks}
        same_engine = str(found.get("engine", "")).startswith(self.prober.engine_label)
        return same_engine and all(found.get(key) == value for key, value in wanted.items())
