"""What workers report to the screen. Progress may be overtaken by newer progress and is then dropped unseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon.write.operation import Progress, Summary

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.imatrix.influence import Influence
    from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics


class Reported(Message):
    """The write stands here."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Reported)


class Written(Message):
    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


class WriteFailed(Message):
    """cancelled: by the user, so nothing is wrong."""

    def __init__(self, text: str, cancelled: bool) -> None:
        super().__init__()
        self.text, self.cancelled = text, cancelled


class Warmed(Message):
    """text: what the kernels' warm-up is at, '' when it is done."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Warmed)


class WarmFailed(Message):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class StatisticsReady(Message):
    """The statistics of an importance matrix."""

    def __init__(
        self,
        imatrix: Imatrix,
        rows: Sequence[TensorStatistics],
        layers: Sequence[LayerStatistics],
        influence: Influence | None,
    ) -> None:
        super().__init__()
        self.imatrix, self.rows, self.layers, self.influence = imatrix, rows, layers, influence


class NotKept(Message):
    """The plan could not be saved."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
