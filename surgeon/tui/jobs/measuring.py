"""Runs of the engine behind the screen: their state, the thread of each, and what it reports. One runs at a time."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon import figures
from surgeon.errors import Cancelled, SurgeonError
from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics, layer_statistics, tensor_statistics
from surgeon.measure.progress import Standing, followed
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.workers import Workers

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.engine.protocol import Engine, LayerDamage
    from surgeon.fleet.cluster import Fleet
    from surgeon.imatrix.influence import Influence
    from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun
    from surgeon.measure.evaluation import Evaluation
    from surgeon.measure.scans.prune_choice import PruneChoice
    from surgeon.measure.scans.prune_scan import PruneScan

TICK = 0.1  # seconds between two reports at most: each is a few hundred bytes on the wire
GROWTH_SECONDS = 1.0  # between two updates of the tree while an importance matrix grows


class Stood(Message):
    """The job's `standing` is newer than what is shown."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Stood)


class Ended(Message):
    """The job is over; its `failure` says how, if it did not end well."""

    def __init__(self, job: MeasureJob) -> None:
        super().__init__()
        self.job = job


class Grew(Message):
    """Statistics of the importance matrix collected so far."""

    def __init__(
        self, rows: list[TensorStatistics], layers: list[LayerStatistics], influence: Influence | None
    ) -> None:
        super().__init__()
        self.rows, self.layers, self.influence = rows, layers, influence

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Grew)


class Damaged(Message):
    """What leaving one layer out costs."""

    def __init__(self, damage: LayerDamage) -> None:
        super().__init__()
        self.damage = damage


class MeasureJob(ABC):
    """title: for dialogs; word: for the header. A subclass yields its Standings, and messages for the screen."""

    title = word = ""

    def __init__(self, workers: Workers | None = None) -> None:
        """workers: of a fleet that does the work, where `use` knows how to give it to them."""
        self.workers = workers or Workers()
        self.cancelled = threading.Event()
        self.standing: Standing | None = None
        self.failure = ""
        self.running = True
        self.began = time.monotonic()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def items(self) -> Iterator[Standing | Message]:
        """Do the work, telling how far it is."""

    def use(self, fleet: Fleet) -> None:
        """Have the work done over this fleet."""
        raise NotImplementedError

    @abstractmethod
    def engine_run(self) -> EngineRun | None:
        """The engine's run in hand, for its log."""

    def result(self) -> list[Line]:
        """What to show at the end."""
        return []

    def kept(self) -> str:
        """What a run that was stopped leaves, in a few words."""
        return ""

    def chosen(self) -> tuple[int, ...]:
        """Layers that the run says to prune: Enter does it."""
        return ()

    @property
    def doing(self) -> str:
        """A sentence's beginning, for the question before quitting."""
        return f"{self.title[0].upper()}{self.title[1:]} is running"

    def news(self) -> str:
        """What came of it, in a few words, for a notification."""
        return f"{self.title}: {self.failure or 'done'}"

    @property
    def keeps(self) -> str:
        """What stopping it leaves, for the question before."""
        kept = self.kept()
        return f"{kept[0].upper()}{kept[1:]}." if kept else ""

    def log(self) -> str:
        run = self.engine_run()
        return run.log_text() if run is not None else ""

    def start(self, tell: Callable[[Message], object]) -> None:
        # A daemon, not textual's worker: those share a pool, and leaving waits for it with no limit.
        self._thread = threading.Thread(target=self._run, args=(tell,), name="measure", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 0.0) -> None:
        """Cancel, and wait so long for the child's end and the removal of temporary files."""
        self.cancelled.set()
        if self._thread is not None and seconds:
            self._thread.join(seconds)

    def _steps(self) -> Iterator[Standing | Message]:
        """The items, after the workers are there."""
        if self.workers.address is not None:
            yield Standing("connecting", note=self.workers.address)
        with self.workers.joined(self.cancelled) as fleet:
            if fleet is not None:
                self.use(fleet)
            yield from self.items()

    def _run(self, tell: Callable[[Message], object]) -> None:
        last = 0.0
        try:
            for item in self._steps():
                if not isinstance(item, Standing):
                    tell(item)
                    continue
                new_stage = self.standing is None or self.standing.stage != item.stage
                self.standing = item
                now = time.monotonic()
                if new_stage or now - last >= TICK:
                    last = now
                    tell(Stood())
        except Cancelled:
            kept = self.kept()
            self.failure = f"stopped{': ' + kept if kept else ''}"
        except SurgeonError as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = f"{error.filename or self.title}: {error.strerror or error}"
        except Exception as error:  # a defect must not take the session down: the plan is still on the table
            self.failure = f"{self.title}: {type(error).__name__}: {error}"
        self.running = False
        tell(Ended(self))


class EvaluateJob(MeasureJob):
    """Measures a plan or a file; its figures are in the journal when it ends."""

    title, word = "measure", "measuring"

    def __init__(self, evaluation: Evaluation, workers: Workers | None = None) -> None:
        super().__init__(workers)
        self.evaluation = evaluation
        evaluation.cancelled = self.cancelled

    def use(self, fleet: Fleet) -> None:
        from surgeon.fleet.evaluation import FleetEvaluator

        self.evaluation.elsewhere = FleetEvaluator(fleet)

    def items(self) -> Iterator[Standing | Message]:
        yield from self.evaluation.steps()

    def engine_run(self) -> EngineRun | None:
        return self.evaluation.run

    def kept(self) -> str:
        return "what was measured is in the journal" if self.evaluation.trial else "no temporary file is left"

    def news(self) -> str:
        trial = self.evaluation.trial
        if trial is None or self.failure:
            return super().news()
        kld, ppl = trial.figure("mean_kld"), trial.figure("ppl")
        figure = (
            f"KLD {figures.divergence(kld)}" if kld is not None else f"PPL {ppl:.4f}" if ppl is not None else "measured"
        )
        return f"{figure} · {trial.label}"

    def result(self) -> list[Line]:
        from surgeon.tui.drawing.trial_lines import figure_lines

        trial = self.evaluation.trial
        return [] if trial is None else [[(clean(trial.label), "strong")], *figure_lines(trial)]


class CollectJob(MeasureJob):
    """Collects an importance matrix; the screen sees it grow."""

    title, word = "collect an imatrix", "imatrix"

    def __init__(self, engine: Engine, collection: Collection, workers: Workers | None = None) -> None:
        from surgeon.measure.collecting.imatrix_run import ImatrixRun

        super().__init__(workers)
        self.engine, self.collection = engine, collection
        self.collecting: ImatrixRun = ImatrixRun(engine, collection, self.cancelled)

    def use(self, fleet: Fleet) -> None:
        from surgeon.fleet.collection import FleetCollector, in_blocks
        from surgeon.measure.collecting.imatrix_run import ImatrixRun

        self.collection = in_blocks(self.collection)
        collector = FleetCollector(fleet, self.collection)
        self.collecting = ImatrixRun(self.engine, self.collection, self.cancelled, collector)

    def items(self) -> Iterator[Standing | Message]:
        from surgeon.engine.protocol import Snapshot

        last = 0.0
        for item in followed(self.collecting.messages(), "collecting", "chunks"):
            if isinstance(item, Standing):
                yield item
            elif isinstance(item, Snapshot) and time.monotonic() - last >= GROWTH_SECONDS:
                assert self.collecting.current is not None  # set before the snapshot is passed on
                imatrix, influence = self.collecting.current
                rows = tensor_statistics(imatrix)
                yield Grew(rows, layer_statistics(rows), influence)
                last = time.monotonic()

    def engine_run(self) -> EngineRun | None:
        return self.collecting.run

    def kept(self) -> str:
        partial = self.collection.partial
        return f"what was collected is in {partial.name}; I resumes it" if partial.exists() else ""

    def result(self) -> list[Line]:
        assert self.collecting.current is not None  # it ended well
        imatrix, influence = self.collecting.current
        chunks = f"{len(imatrix.entries)} entries, {imatrix.chunk_count} chunks of {imatrix.chunk_size} tokens"
        lines: list[Line] = [[("collected ", "good"), (chunks, "text")]]
        lines.append([(clean(str(self.collection.out)), "muted")])
        if influence is not None:
            layers = len(influence.layers)
            lines.append([(f"with the block influence of {layers} layers: columns BI, LIM and wZD (c)", "muted")])
        return lines


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
            return f"{done} sets of layers measured and kept; S resumes" if done else ""
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


def engine_missing(library: str | None = None) -> str:
    """Why the engine cannot run here, in one line; '' where it can. library: a folder that was named for it."""
    from surgeon.engine.libraries import find_libraries

    try:
        find_libraries(library)
    except SurgeonError as error:
        return str(error)
    return ""


def partial_of(out: Path) -> Path:
    """Where a collection that was cut off left its sums."""
    return out.with_name(f"{out.name}.partial")
