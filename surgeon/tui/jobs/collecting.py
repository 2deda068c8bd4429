"""Collecting an importance matrix behind the screen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon import figures
from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics, layer_statistics, tensor_statistics
from surgeon.measure.progress import Standing, followed
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.workers import Workers

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.engine.protocol import Engine
    from surgeon.fleet.cluster import Fleet
    from surgeon.imatrix.influence import Influence
    from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun

GROWTH_SECONDS = 1.0  # between two updates of the tree while an importance matrix grows


class Grew(Message):
    """Statistics of the importance matrix collected so far."""

    def __init__(
        self, rows: list[TensorStatistics], layers: list[LayerStatistics], influence: Influence | None
    ) -> None:
        super().__init__()
        self.rows, self.layers, self.influence = rows, layers, influence

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Grew)


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
        entries = figures.counted(len(imatrix.entries), "entry", "entries")
        chunks = f"{entries}, {figures.counted(imatrix.chunk_count, 'chunk')} of {imatrix.chunk_size} tokens"
        lines: list[Line] = [[("collected ", "good"), (chunks, "text")]]
        lines.append([(clean(str(self.collection.out)), "muted")])
        if influence is not None:
            layers = figures.counted(len(influence.layers), "layer")
            lines.append([(f"with the block influence of {layers}: columns BI, LIM and wZD (c)", "muted")])
        return lines
