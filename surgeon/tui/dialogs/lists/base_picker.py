"""The base file type, with what the model would come to under the present rules and marks."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

from textual import on
from textual.app import ComposeResult
from textual.widgets import Static

from surgeon import figures
from surgeon.plan.file_types import FILE_TYPES
from surgeon.session.candidates import Candidate, base_candidates
from surgeon.session.session import Session
from surgeon.tui.dialogs.base import Choices, Frame
from surgeon.tui.dialogs.lists.candidate_list import Came, CandidateDialog
from surgeon.tui.drawing.spans import Line, fit
from surgeon_kernels.formats import FORMATS

_HEAD: Line = [(" base             size    bpw", "head")]


def _bits(name: str) -> float:
    base = FILE_TYPES[name].base
    return FORMATS[base].bpw if base else 99.0


class BasePicker(CandidateDialog):
    title_ = "base file type"
    hint = "type a name, or ↑ ↓ · Enter apply · Esc cancel"
    # Most bits first; the short names of the _M mixes are left out.
    names = tuple(sorted(FILE_TYPES.keys() - {"Q3_K", "Q4_K", "Q5_K"}, key=lambda name: (-_bits(name), name)))

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog medium list") as frame:
            frame.border_title, frame.border_subtitle = self.title_, self.hint
            pkld: Line = [("  pKLD", "head")] if self.session.costs is not None else []
            yield Static(self.text([[*_HEAD, *pkld]]), id="heads")
            yield Choices()

    def on_mount(self) -> None:
        self.query_one(Choices).fill(self.entries(), self.session.plan.file_type)
        self.begin(self._source)

    def _source(self, stop: Event) -> Iterator[object]:
        yield from base_candidates(self.session)

    @on(Came)
    def came(self, event: Came) -> None:
        if event.generation == self.generation and isinstance(event.item, Candidate):
            self.found[event.item.name] = event.item
            if event.item.name in self.names:
                self.show_line(event.item.name)

    def line(self, name: str) -> Line:
        candidate = self.found.get(name)
        role = "faint" if candidate and candidate.note else "text"
        sizes = f"{figures.size(candidate.total):>9} {candidate.total_bpw:6.2f}" if candidate else " " * 16
        note = candidate.note if candidate and candidate.note else FILE_TYPES[name].description
        if self.session.costs is not None:
            kld = candidate.kld if candidate else None
            sizes += f"  {'' if kld is None else figures.divergence(kld):<7}"
        return [(fit(name, 11), role), (f" {sizes}  ", role), (note, "faint" if role == "faint" else "muted")]
