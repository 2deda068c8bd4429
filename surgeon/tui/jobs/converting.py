"""Converting a checkpoint behind the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon import figures
from surgeon.measure.progress import Standing
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.write.conversion import Conversion, convert

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun


class ConversionJob(MeasureJob):
    """Makes the GGUF of a checkpoint, by llama.cpp's own converter."""

    title, word = "convert", "converting"

    def __init__(self, wanted: Conversion) -> None:
        super().__init__()
        self.wanted = wanted

    def items(self) -> Iterator[Standing | Message]:
        for item in convert(self.wanted, cancelled=self.cancelled):
            yield Standing("converting", 0, 1, item.part, self.wanted.target.name, {}, item.seconds_left)

    def engine_run(self) -> EngineRun | None:
        return None

    def kept(self) -> str:
        return "no file is left"

    def result(self) -> list[Line]:
        """Where the file is, and how to open it."""
        target = self.wanted.target
        size = figures.size(target.stat().st_size)
        return [[("converted ", "good"), (size, "strong")], [(clean(f"open it: surgeon {target}"), "text")]]
