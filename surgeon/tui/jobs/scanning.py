"""Leaving layers out behind the screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon import figures
from surgeon.measure.progress import Standing, followed
from surgeon.tui.drawing.spans import Line
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.workers import Workers

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.engine.protocol import LayerDamage
    from surgeon.fleet.cluster import Fleet
    from surgeon.measure.scans.prune_choice import PruneChoice
    from surgeon.measure.scans.prune_scan import PruneScan


class Damaged(Message):
    """What leaving one layer out costs."""

    def __init__(self, damage: LayerDamage) -> None:
        super().__init__()
        self.damage = damage


class ScanJob(MeasureJob):
    """Measures what leaving each layer out costs."""

    title, word = "prune-scan", "prune-scan"

    def __init__(self, scan: PruneScan, choice: PruneChoice | None = None, workers: Workers | None = None) -> None:
        """choice: which layers to prune, found by measuring more sets."""
        super().__init__(workers)
        self.scan, self.choice = scan, choice
        scan.cancelled = self.cancelled

    def use(self, fleet: Fleet) -> None:
        from surgeon.fleet.scans import scanned

        self.scan.elsewhere = partial(scanned, fleet)

    def items(self) -> Iterator[Standing | Message]:
        from surgeon.engine.protocol import LayerDamage

        plain = not self.scan.job.n_fit
        for damage in self.scan.damages.values() if plain else ():
            yield Damaged(damage)
        messages = self.scan.messages() if self.choice is None else self.choice.messages()
        unit = "chunks" if self.scan.elsewhere is None else "tasks"
        for item in followed(messages, "leaving layers out", unit):
            if isinstance(item, Standing):
                choice = self.choice
                yield item if choice is None else replace(item, index=choice.round, count=choice.rounds)
            elif isinstance(item, LayerDamage) and plain:
                yield Damaged(item)

    def engine_run(self) -> EngineRun | None:
        return self.scan.run

    def kept(self) -> str:
        done, count = len(self.scan.damages), len(self.scan.job.layer_sets)
        if self.choice is not None:
            sets = figures.counted(done, "set of layers", "sets of layers")
            return f"{sets} measured and kept; S resumes" if done else ""
        return f"{done} of {count} layers measured and kept; S resumes" if done else ""

    def chosen(self) -> tuple[int, ...]:
        return () if self.choice is None or self.running or self.failure else self.choice.chosen

    def result(self) -> list[Line]:
        ranked = sorted(self.scan.damages.values(), key=lambda damage: damage.mean_kld)
        what = "layers" if self.choice is None else "sets of layers"
        lines: list[Line] = [[("measured ", "good"), (f"{len(ranked)} {what}; least damage when removed:", "text")]]
        if self.choice is not None:
            layers = ",".join(map(str, self.choice.chosen))
            how = "healed" if self.scan.job.n_fit else "plain"
            kld = f"   KLD {self.choice.damage:.4f} {how}"
            lines = [[("prune these: ", "good"), (layers, "strong"), (kld, "text")]]
            lines.append([(f"of {len(ranked)} sets measured, the best of each size:", "muted")])
            best = {len(damage.layers): damage for damage in reversed(ranked)}
            ranked = [best[size] for size in sorted(best)]
        names = ["+".join(f"blk.{layer}" for layer in damage.layers) for damage in ranked[:5]]
        wide = max(map(len, names), default=0)
        for name, damage in zip(names, ranked, strict=False):
            same = f"same top {100 * damage.same_top:.1f}%"
            lines.append([(f"{name:<{wide}}", "text"), (f"   KLD {damage.mean_kld:.4f}   {same}", "muted")])
        return lines
