"""The weights of the row under the cursor, as `surgeon show --tensor` prints them, from a process of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from textual.message import Message

from surgeon.errors import SurgeonError
from surgeon.model.model import Model
from surgeon.session.child_process import lines_of
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.spans import Line, clean, wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.imatrix.experts import ExpertSums


class WeightsRead(Message):
    """rows: what the process printed; failure: why there is nothing."""

    def __init__(self, rows: list[str], failure: str = "") -> None:
        super().__init__()
        self.rows, self.failure = rows, failure


class WeightsReader(Reader):
    """expert_lines: what is known of the experts of this tensor."""

    def __init__(self, model: Model, name: str, expert_lines: list[Line]) -> None:
        super().__init__("weights", "↑ ↓ move · Esc close")
        self.model, self.name_, self.expert_lines = model, name, expert_lines
        self.rows: list[str] = []
        self.note = f"reading {name} …"
        self._stop = threading.Event()

    def lines(self, width: int) -> list[Line]:
        found: list[Line] = [[(clean(row), "accent" if at in _BARS else "text")] for at, row in enumerate(self.rows)]
        note = wrap(clean(self.note), width, "muted") if self.note else []
        return [*note, *found, *self.expert_lines]

    def on_mount(self) -> None:
        super().on_mount()
        threading.Thread(target=self._run, name="weights", daemon=True).start()

    def on_unmount(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        words = ("-m", "surgeon", "show", str(self.model.file.path.absolute()), "--tensor", self.name_)
        try:
            rows = [line.rstrip("\n") for line in lines_of(words, "", self._stop)]
            self.post_message(WeightsRead(rows))
        except SurgeonError as error:
            self.post_message(WeightsRead([], f"{self.name_}: the weights cannot be measured: {error}"))

    def on_weights_read(self, event: WeightsRead) -> None:
        self.rows, self.note = event.rows, event.failure
        self.show_lines()


def expert_lines(sums: ExpertSums, layer: int, short: str) -> list[Line]:
    """The most and the least used experts of the layer, and how many were never called; none for a dense tensor."""
    if "_exps" not in short or layer not in sums.layers:
        return []
    shares = sums.share_of_calls()[layer]
    order = np.argsort(-shares, kind="stable").tolist()
    idle = int(np.count_nonzero(sums.calls[layer] == 0))
    return [
        [],
        [("most used experts   ", "muted"), (_named(shares, order[:4]), "text")],
        [("least used experts  ", "muted"), (_named(shares, order[-4:][::-1]), "text")],
        [("never called        ", "muted"), (f"{idle} of {len(order)}", "warning" if idle else "text")],
    ]


def _named(shares: NDArray[np.float64], experts: list[int]) -> str:
    return "  ".join(f"{expert} ({100 * shares[expert]:.3g}% of calls)" for expert in experts)


_BARS = range(6, 10)  # the histogram's lines in what is printed
