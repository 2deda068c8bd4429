"""The type of a tensor, the marked ones, a layer, a kind or all: bits, sizes and measured error of every type."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from surgeon import figures
from surgeon.model.model import Tensor
from surgeon.session.candidates import (
    TYPES,
    Candidate,
    Lost,
    measured_errors,
    measured_losses,
    missing_kernel,
    type_candidates,
)
from surgeon.session.rows import Row, TensorRow
from surgeon.session.session import Scope, Session
from surgeon.tui.dialogs.base import Choices, Frame
from surgeon.tui.dialogs.lists.candidate_list import Came, CandidateDialog
from surgeon.tui.drawing.spans import Line, clean, fit
from surgeon_kernels.formats import FORMATS

BY_MIX = "auto"
MOST_MEASURED = 16  # tensors of a scope whose error is measured, spread over it


class TypePicker(CandidateDialog):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab,right", "scope(1)", "scope", show=False, priority=True),
        Binding("shift+tab,left", "scope(-1)", "scope", show=False, priority=True),
    ]
    names = (BY_MIX, *TYPES)
    letter_keys: ClassVar[dict[str, str]] = {"l": "scope(1)", "h": "scope(-1)"}
    title_ = "type"
    hint = "type a name, or ↑ ↓ · Tab scope · Enter apply · Esc cancel"

    def __init__(self, session: Session, row: Row, errors: dict[str, float], shown: Collection[str] = ()) -> None:
        """shown: names of the tensors that the filter leaves, where there is one."""
        super().__init__()
        self.session, self.row, self.errors, self.shown = session, row, errors, shown
        self.scopes = available_scopes(session, row, shown)
        self.scope: Scope = "marked" if "marked" in self.scopes else self.scopes[0]
        self.measuring = ""
        self.losses: dict[str, Lost] = {}

    @property
    def _both(self) -> bool:
        """Whether the errors of both encoders are shown."""
        return self.session.moments is not None

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog medium list") as frame:
            frame.border_title, frame.border_subtitle = self.title_, self.hint
            yield Static(id="scope")
            more = ["feedback"] if self._both else []
            more += ["pKLD"] if self.session.costs is not None else []
            heads = f"{_HEAD}{' stock' if self._both else ' error'}  {'  '.join(more)}"
            yield Static(self.text([[(heads.rstrip(), "head")]]), id="heads")
            yield Choices()
            yield Static(id="answer")

    def on_mount(self) -> None:
        self.query_one(Choices).fill(self.entries(), self._present())
        self._preview()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.session.scope(self.scope, self.row.key, self.shown)

    def _present(self) -> str:
        types = {self.session.ops[tensor.name].to_type for tensor in self.tensors}
        name = types.pop() if len(types) == 1 else BY_MIX
        return name if name in TYPES and not missing_kernel(name) else BY_MIX

    def action_scope(self, step: int) -> None:
        self.scope = self.scopes[(self.scopes.index(self.scope) + step) % len(self.scopes)]
        self.found.clear()
        self.losses.clear()
        self._preview()

    def _preview(self) -> None:
        spans: Line = []
        for scope in self.scopes:
            spans += [(f" {_SCOPES[scope]} ", "strip-scope" if scope == self.scope else "muted"), (" ", "")]
        tensors = self.tensors
        what = clean(tensors[0].name) if len(tensors) == 1 else f"{len(tensors)} tensors"
        self.query_one("#scope", Static).update(self.text([spans, [(what, "strong")]]))
        self.begin(partial(self._source, tensors))

    def _source(self, tensors: tuple[Tensor, ...], stop: threading.Event) -> Iterator[object]:
        """Sizes first, they are quick; then the errors: of the row's own tensor, or of the scope's together."""
        yield from type_candidates(self.session, tensors)
        names = [tensor.name for tensor in tensors if self.session.can_quantize(tensor)]
        if not names:
            return
        if self.scope == "row" and not self._both:
            wanted = [name for name in TYPES if name not in self.errors]
            yield "errors are being measured …" if wanted else ""
            for _, name, error in measured_errors(self.session, [(names[0], wanted)] if wanted else [], stop):
                yield name, None if error is None else Lost(error)
            yield ""
            return
        chosen = names[:: -(-len(names) // MOST_MEASURED)]
        what = f"{len(chosen)} of {len(names)} tensors" if len(chosen) < len(names) else "the whole scope"
        yield f"errors are being measured: {what} …"
        for name, lost in measured_losses(self.session, chosen, TYPES, stop):
            yield name, lost
        yield f"errors: {what}" if len(chosen) < len(names) else ""

    @on(Came)
    def came(self, event: Came) -> None:
        if event.generation != self.generation:
            return
        if isinstance(event.item, Candidate):
            self.found[event.item.name] = event.item
            self.show_line(event.item.name)
        elif isinstance(event.item, tuple):
            name, lost = event.item
            self.measuring = name if lost is None else ""
            if lost is not None:
                self.losses[name] = lost
                if self.scope == "row" and not self._both:
                    self.errors[name] = lost.stock
            self.show_line(name)
        else:
            self.query_one("#answer", Static).update(self.text([[(str(event.item), "muted")]]))

    def line(self, name: str) -> Line:
        if name == BY_MIX:
            return [("auto", "text"), ("      mix + rules", "muted")]
        candidate = self.found.get(name)
        role = "faint" if missing_kernel(name) else "text"
        line: Line = [(fit(name, 9), role), (f"{FORMATS[name].bpw:6.3f}", "muted")]
        if candidate is None:
            return [*line, (f"  {missing_kernel(name)}", "faint")]
        line += [
            (fit(figures.size(candidate.nbytes), 11, "right"), "text" if role == "text" else role),
            (fit(figures.size(candidate.total), 11, "right"), "muted" if role == "text" else role),
            (f"{candidate.total_bpw:7.2f}", "muted" if role == "text" else role),
        ]
        line += self._errors_of(name)
        if self.session.costs is not None:
            kld = "" if candidate.kld is None else figures.divergence(candidate.kld)
            line.append((f"  {kld:<6}", "text"))
        note = candidate.note or (f"→ {candidate.actual}" if candidate.actual else "")
        return [*line, (f"  {note}", "faint" if candidate.note else "warning")]

    def _errors_of(self, name: str) -> Line:
        known = Lost(self.errors[name]) if self.scope == "row" and not self._both and name in self.errors else None
        lost = self.losses.get(name, known)
        shown = f"{lost.stock:.4f}" if lost is not None else "…" if name == self.measuring else ""
        line: Line = [(f"  {shown:<6}", "changed")]
        if self._both:
            better = "" if lost is None or lost.feedback is None else f"{lost.feedback:.4f}"
            line.append((f"  {better:<8}", "good"))
        return line


_HEAD = " type        bpw       size      model    bpw  "
_SCOPES: dict[Scope, str] = {
    "row": "this tensor",
    "marked": "marked",
    "shown": "shown",
    "layer": "layer",
    "kind": "all of this kind",
    "all": "all tensors",
}


def available_scopes(session: Session, row: Row, shown: Collection[str] = ()) -> tuple[Scope, ...]:
    """Whom a type can be given to from this row, the nearest first."""
    wanted: list[Scope] = ["row"] if isinstance(row, TensorRow) else []
    wanted += ["marked", "shown", "layer"]
    wanted += ["kind"] if isinstance(row, TensorRow) and row.layer is not None else []
    found = [scope for scope in wanted if session.scope(scope, row.key, shown)]
    return (*found, "all")
