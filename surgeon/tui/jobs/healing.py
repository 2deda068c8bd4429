"""Healing behind the screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon.engine.protocol import HealedMatrix
from surgeon.measure.progress import Standing
from surgeon.plan.plan import Healing
from surgeon.tui.drawing.spans import Line, clean
from surgeon.tui.jobs.measuring import MeasureJob

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.measure.healing.heal_run import HealRun


class HealMade(Message):
    """A heal file is there, made for pruning these layers."""

    def __init__(self, healing: Healing, pruned: frozenset[int], matrices: int) -> None:
        super().__init__()
        self.healing, self.pruned, self.matrices = healing, pruned, matrices


class HealJob(MeasureJob):
    """Makes a heal file."""

    title, word = "heal", "healing"

    def __init__(self, run: HealRun) -> None:
        super().__init__()
        self.healing = run
        run.cancelled = self.cancelled
        self.matrices: list[HealedMatrix] = []

    def items(self) -> Iterator[Standing | Message]:
        from surgeon.healing.heal_file import load_heal

        for item in self.healing.steps():
            if isinstance(item, Standing):
                yield item
            else:
                self.matrices.append(item)
        heal = load_heal(self.healing.request.out)
        yield HealMade(Healing(str(heal.path), heal.id), heal.origin.pruned, len(heal.tensors))

    def engine_run(self) -> EngineRun | None:
        return self.healing.run

    def kept(self) -> str:
        return "no file is left"

    def result(self) -> list[Line]:
        """The matrices that gained most, and the held-out text."""
        origin = self.healing.origin
        lines: list[Line] = []
        if origin is not None:
            lines.append([("healed ", "good"), (f"on {origin.summary()}", "text")])
            for text in origin.held_out:
                lines.append(
                    [(f"{clean(text.text)}: ", "muted"), (f"KLD {text.plain:.4f} → {text.healed:.4f}", "strong")]
                )
        for one in sorted(self.matrices, key=lambda one: one.after - one.before)[:5]:
            gone = 100 * (1 - one.after / one.before) if one.before else 0.0
            lines.append([(f"{f'blk.{one.layer}.{one.kind}':<22}", "text"), (f"−{gone:.0f} % error", "muted")])
        return lines
