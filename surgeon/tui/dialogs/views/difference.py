"""What the model and another GGUF differ in; how far the weights are apart comes in from a process of its own."""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.measure.difference import Difference, Pair, type_counts
from surgeon.model.model import Model
from surgeon.session.child_process import lines_of
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.spans import Line, clean, elide_start, fit, wrap


class Measured(Message):
    """errors: tensor name -> relative error; failure: why there are none."""

    def __init__(self, errors: dict[str, float], failure: str = "") -> None:
        super().__init__()
        self.errors, self.failure = errors, failure


class DifferenceReader(Reader):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("M", "show_on_map", show=False, priority=True),
        Binding("o", "take_types", show=False, priority=True),
    ]

    def __init__(self, found: Difference, *, show_on_map: Callable[[], None], take_types: Callable[[], None]) -> None:
        """show_on_map: shows the difference on the map; take_types: takes the other's types into the plan."""
        super().__init__("compare", "↑ ↓ move · M on the map · o take its types · Esc close", tall=True)
        self.found, self._show_on_map, self._take_types = found, show_on_map, take_types
        self.errors: dict[str, float] = {}
        self.note = "measuring how far the weights are apart …"
        self._stop = threading.Event()

    def lines(self, width: int) -> list[Line]:
        return difference_lines(self.found, self.errors, self.note, width)

    def action_show_on_map(self) -> None:
        self.dismiss()
        self._show_on_map()

    def action_take_types(self) -> None:
        self.dismiss()
        self._take_types()

    def on_mount(self) -> None:
        threading.Thread(target=self._run, name="difference", daemon=True).start()

    def on_unmount(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        paths = [str(model.file.path.absolute()) for model in (self.found.first, self.found.second)]
        try:
            text = "".join(lines_of(("-m", "surgeon", "diff", *paths, "--json"), "", self._stop))
            tensors = json.loads(text)["tensors"] if not self._stop.is_set() else []
            errors = {tensor["name"]: tensor["error"] for tensor in tensors if tensor["error"] is not None}
            self.post_message(Measured(errors))
        except (SurgeonError, ValueError) as error:
            self.post_message(Measured({}, f"the weights cannot be compared: {error}"))

    def on_measured(self, event: Measured) -> None:
        self.errors, self.note = event.errors, event.failure
        self.show_lines()


def difference_lines(found: Difference, errors: Mapping[str, float], note: str, width: int) -> list[Line]:
    """Sizes, kinds of tensors with their types and error, keys that differ."""
    cell = max(10, (width - 34) // 2)
    lines: list[Line] = [*_about("this", found.first, width), *_about("other", found.second, width), []]
    kinds = found.kinds
    if not kinds:
        lines.append([("the same tensors, shapes and types", "muted")])
    else:
        heads = [fit("tensors", 18), fit("this", cell), fit("other", cell), "     error"]
        lines.append([("  ".join(heads), "head")])
        lines += [_kind_line(kind, pairs, errors, cell) for kind, pairs in kinds.items()]
    alike = [error for pair in found.tensors if pair.kind not in kinds and (error := errors.get(pair.name))]
    if alike:
        lines.append([(f"weights of {len(alike)} more tensors differ, by up to {max(alike):.4f}", "warning")])
    if note:
        lines += [[], *wrap(clean(note), width, "muted")]
    lines += [[], [("metadata", "title")]]
    if not found.metadata:
        lines.append([("the same", "muted")])
    for key in found.metadata:
        lines.append([(clean(key.name), "text")])
        for sign, value in (("−", key.first), ("+", key.second)):
            if value is not None:
                lines.append([(f"  {sign} ", "key"), (fit(clean(value), width - 4).rstrip(), "muted")])
    return lines


def _about(what: str, model: Model, width: int) -> list[Line]:
    facts = f"  {figures.size(model.file.nbytes)}  {model.bpw:.2f} bpw  {figures.counted(len(model.layers), 'layer')}"
    name = elide_start(clean(str(model.file.path)), max(12, width - len(facts) - 8))
    return [[(f"{what:<6}", "muted"), (name, "strong"), (facts, "text")]]


def _kind_line(kind: str, pairs: Sequence[Pair], errors: Mapping[str, float], cell: int) -> Line:
    one, other = type_counts([pair.first for pair in pairs]), type_counts([pair.second for pair in pairs])
    known = [errors[pair.name] for pair in pairs if pair.name in errors]
    error = f"{statistics.median(known):.4f}" if known else ""
    return [
        (fit(clean(kind), 18) + "  ", "text"),
        (fit(one, cell) + "  ", "muted"),
        (fit(other, cell) + "  ", "changed"),
        (error.rjust(10), "text"),
    ]
