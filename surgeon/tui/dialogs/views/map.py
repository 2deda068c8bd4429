"""The map: the whole model at once, one cell a tensor, with what the plan makes of it; painted like a picture."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.model.model import Tensor
from surgeon.session.candidates import MAP_WEIGHTS, measured_errors
from surgeon.session.model_map import Grid, step
from surgeon.session.rows import TensorRow
from surgeon.session.session import Session
from surgeon.tui.dialogs.base import Dialog
from surgeon.tui.dialogs.lists.picker import Entry, Picker
from surgeon.tui.dialogs.lists.type_picker import BY_MIX, TypePicker
from surgeon.tui.drawing.canvas import Canvas
from surgeon.tui.drawing.map_lines import (
    MapState,
    MapView,
    about_lines,
    error_of,
    head_line,
    key_line,
    map_lines,
    place_at,
    views,
)
from surgeon.tui.drawing.spans import Line, fit, plain

Bases = Mapping[str, Mapping[str, str]]
"""What the map can compare with: a name -> tensor name -> type."""


class Errors(Message):
    """What the measuring process found since the last one: (tensor, type, error)."""

    def __init__(self, found: list[tuple[str, str, float]], done: bool, failure: str = "") -> None:
        super().__init__()
        self.found, self.done, self.failure = found, done, failure


class MapDialog(Dialog[str]):
    """Edits the session's plan directly; every edit can be undone here and in the tree. Answers with the tensor to go
    to in the tree."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(keys, action, show=False, priority=True)
            for keys, action in (
                ("up,k", "go(-1, 0)"), ("down,j", "go(1, 0)"), ("left,h", "go(0, -1)"), ("right,l", "go(0, 1)"),
                ("pageup,K,ctrl+b", "go(-5, 0)"), ("pagedown,J,ctrl+f", "go(5, 0)"),
                ("H,shift+left", "go(0, -10)"), ("L,shift+right", "go(0, 10)"),
                ("home,0", "edge(-1)"), ("end,dollar_sign", "edge(1)"), ("g", "edge_row(-1)"), ("G", "edge_row(1)"),
                ("tab", "view(1)"), ("shift+tab", "view(-1)"), ("V", "choose_view"), ("b", "compare"),
                ("v", "range"), ("t", "type"), ("plus,equals_sign", "step(1)"), ("minus", "step(-1)"),
                ("T", "untype"), ("p", "prune"), ("u", "undo"), ("ctrl+r", "redo"), ("enter", "take"), ("q,M", "leave"),
                ("escape", "back"),
            )
        ),
    ]  # fmt: skip

    def __init__(
        self, session: Session, errors: dict[str, dict[str, float]], bases: Bases, at: str = "", view: str = ""
    ) -> None:
        """errors: measured relative errors, tensor name -> type -> error, filled further here; at: the tensor, or
        the layer's key, to begin on; view: what the cells show first."""
        super().__init__()
        self.session, self.errors, self.bases = session, errors, bases
        grid = Grid.of(session.model, session.can_quantize)
        base = next(iter(bases), "")
        known = views(session)
        first = next((one for one in known if one.key == view), known[0])
        self.state = MapState(session, grid, first, errors=errors, base=bases.get(base), base_name=base)
        places = {tensor.name: place for place, tensor in grid.tensors.items()}
        kind, layer = places.get(at, (grid.kinds[0] if grid.kinds else "", session.layer_of(at)))
        if kind in grid.kinds and layer in grid.layers:
            self.state = replace(self.state, cursor=(grid.kinds.index(kind), grid.layers.index(layer)))
        self._stop = threading.Event()
        self._measuring = False
        self._asked: dict[str, set[str]] = {}  # types that do not fit are never answered, and not asked for again
        self._said = ""

    def compose(self) -> ComposeResult:
        yield Canvas(lambda width, _: [head_line(self.state, width)], name="map-head")
        yield Canvas(lambda width, height: map_lines(self.state, width, height), name="map")
        yield Canvas(self._about, name="map-about")
        yield Canvas(lambda width, _: [key_line(self.state, width)], name="map-keys")

    def _about(self, width: int, height: int) -> list[Line]:
        first, second = about_lines(self.state, width)
        return [first, [(f" {self._said}", "accent")] if self._said else second]

    @property
    def shown(self) -> str:
        """The map as text, for tests."""
        return "\n".join(plain(line) for line in self.query_one("#map", Canvas).lines)

    @property
    def tensor(self) -> Tensor | None:
        return self.state.grid.at(*self.state.cursor)

    def show(self, state: MapState | None = None, said: str = "") -> None:
        self.state, self._said = state or self.state, said
        for name in ("map-head", "map", "map-about", "map-keys"):
            self.query_one(f"#{name}", Canvas).redraw()
        self._measure()

    # --- looking

    def action_go(self, rows: int, columns: int) -> None:
        row, column = self.state.cursor
        self._to(row + rows, column + columns)

    def action_edge(self, side: int) -> None:
        self._to(self.state.cursor[0], 0 if side < 0 else len(self.state.grid.layers))

    def action_edge_row(self, side: int) -> None:
        self._to(0 if side < 0 else len(self.state.grid.kinds), self.state.cursor[1])

    def _to(self, row: int, column: int) -> None:
        grid = self.state.grid
        place = max(0, min(row, len(grid.kinds) - 1)), max(0, min(column, len(grid.layers) - 1))
        self.show(replace(self.state, cursor=place))

    def action_view(self, by: int) -> None:
        known = views(self.session)
        keys = [view.key for view in known]
        at = keys.index(self.state.view.key) if self.state.view.key in keys else 0
        self._look(known[(at + by) % len(known)])

    def _look(self, view: MapView) -> None:
        self.show(replace(self.state, view=view), view.help)

    async def action_choose_view(self) -> None:
        known = {view.key: view for view in views(self.session)}
        entries = [
            Entry(key, [(fit(view.title, 10), "text"), (view.help, "muted")], (view.title,))
            for key, view in known.items()
        ]
        picker = Picker("what the cells show", entries, self.state.view.key)
        picker.answered = lambda key: self._look(known[key]) if key is not None else None
        await self.app.push_screen(picker)

    async def action_compare(self) -> None:
        entries = [Entry(name, [(name, "text")]) for name in self.bases]

        def taken(name: str | None) -> None:
            if name is not None:
                view = next(view for view in views(self.session) if view.key == "change")
                self.show(
                    replace(self.state, view=view, base=self.bases[name], base_name=name), f"change against {name}"
                )

        picker = Picker("compare the plan with", entries, self.state.base_name)
        picker.answered = taken
        await self.app.push_screen(picker)

    def action_range(self) -> None:
        corner = self.state.cursor if self.state.corner is None else None
        self.show(replace(self.state, corner=corner))

    def action_back(self) -> None:
        """Escape drops a rectangle first."""
        if self.state.corner is not None:
            self.action_range()
        else:
            self.dismiss(None)

    def action_take(self) -> None:
        tensor = self.tensor
        if tensor is not None:
            self.dismiss(tensor.name)

    def on_click(self, event: events.Click) -> None:
        if event.widget is not None and event.widget.id == "map":
            place = place_at(self.state, event.x, event.y, event.widget.size.width, event.widget.size.height)
            if place is not None:
                self._to(*place)

    # --- the plan

    def edit(self, label: str) -> None:
        resolution = self.session.resolution
        self.app.plan_changed()
        sizes = f"{figures.size(resolution.total_bytes)}, {resolution.bpw:.2f} bpw"
        self.show(replace(self.state, corner=None), f"{label}: {sizes}")

    def _kept(self) -> list[Tensor]:
        return [tensor for tensor in self.state.selected if self.session.ops[tensor.name].action != "drop"]

    async def action_type(self) -> None:
        chosen = self._kept()
        row = TensorRow(self.session, chosen[0], 1) if chosen else None
        if row is None:
            self.show(said="nothing here to give a type")
            return
        names = {tensor.name for tensor in chosen}
        picker = TypePicker(self.session, row, self.errors.setdefault(row.key, {}), names)
        picker.scope = "shown" if len(names) > 1 else "row"

        def taken(name: str | None) -> None:
            if name is not None:
                wanted = [tensor.name for tensor in picker.tensors]
                self.edit(self.session.set_types(wanted, None if name == BY_MIX else name))

        picker.answered = taken
        await self.app.push_screen(picker)

    def action_step(self, by: int) -> None:
        """The next type up or down for every tensor selected, as one step of undo."""
        found = {tensor.name: step(self.session, tensor, by) for tensor in self._kept()}
        types = {name: wanted.type for name, wanted in found.items() if wanted is not None}
        if types:
            self._paint(types)
        else:
            self.show(said="no type further that way")

    def _paint(self, types: Mapping[str, str]) -> None:
        corner = self.state.corner
        self.edit(self.session.set_types_each(types))
        self.state = replace(self.state, corner=corner)  # a step is often followed by another
        self.show(said=self._said)

    def action_untype(self) -> None:
        by_hand = dict(self.session.plan.types)
        names = [tensor.name for tensor in self.state.selected if tensor.name in by_hand]
        if names:
            self.edit(self.session.set_types(names, None))
        else:
            self.show(said="no type is set by hand here")

    def action_prune(self) -> None:
        layers = {tensor.layer for tensor in self.state.selected if tensor.layer is not None}
        if not layers:
            self.show(said="only layers can be pruned")
            return
        try:
            self.edit(self.session.toggle_prune(layers))
        except SurgeonError as error:
            self.show(said=str(error))

    def action_undo(self) -> None:
        label = self.session.undo()
        self.edit(f"undone: {label}") if label is not None else self.show(said="nothing to undo")

    def action_redo(self) -> None:
        label = self.session.redo()
        self.edit(f"redone: {label}") if label is not None else self.show(said="nothing to redo")

    # --- errors, measured in a process of its own while they are looked at

    def _measure(self) -> None:
        """Begin to measure what the error view shows and does not know, those near the cursor first."""
        if self.state.view.key != "err" or self._measuring:
            return
        column = self.state.cursor[1]
        places = sorted(self.state.grid.tensors.items(), key=lambda item: abs(self._column(item[0][1]) - column))
        wanted = [(tensor.name, types) for _, tensor in places if (types := self._unknown(tensor))]
        if wanted:
            self._measuring = True
            threading.Thread(target=self._run, args=(wanted, self._stop), name="map-errors", daemon=True).start()

    def _column(self, layer: int) -> int:
        return self.state.grid.layers.index(layer)

    def _unknown(self, tensor: Tensor) -> list[str]:
        """The tensor's type and its neighbours, as far as they were not measured."""
        op = self.session.ops[tensor.name]
        if op.action == "drop" or not self.session.can_quantize(tensor):
            return []
        steps = (step(self.session, tensor, by) for by in (1, -1))
        names = [op.to_type, *(found.type for found in steps if found is not None)]
        asked = self._asked.setdefault(tensor.name, set())
        fresh = [name for name in names if error_of(self.state, tensor, name) is None and name not in asked]
        asked.update(fresh)
        return fresh

    def _run(self, wanted: list[tuple[str, list[str]]], stop: threading.Event) -> None:
        found: list[tuple[str, str, float]] = []
        failure = ""
        try:
            for name, kind, error in measured_errors(self.session, wanted, stop, MAP_WEIGHTS):
                if error is not None:
                    found.append((name, kind, error))
                if len(found) >= 8:
                    self.post_message(Errors(found, False))
                    found = []
        except SurgeonError as error:
            failure = str(error)
        self.post_message(Errors(found, True, failure))

    def on_errors(self, event: Errors) -> None:
        for name, kind, error in event.found:
            self.errors.setdefault(name, {})[kind] = error
        if event.done:
            self._measuring = False
        if self.is_current or event.done:
            self.show(said=event.failure or self._said)

    def on_mount(self) -> None:
        self.show()

    def resized(self) -> None:
        self.call_after_refresh(self.show)

    def on_unmount(self) -> None:
        self._stop.set()
