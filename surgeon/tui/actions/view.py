"""Moving and looking: nothing here changes the plan."""

from __future__ import annotations

from dataclasses import replace

from surgeon.plan.patterns import SlowPatternError
from surgeon.session.experts.table import expert_sums
from surgeon.session.filters import parse_filter
from surgeon.session.metrics import METRICS
from surgeon.session.rows import SORTS, LayerRow, TensorRow, View, unfold_matches, visible_rows
from surgeon.session.session import layer_key
from surgeon.tui.answers import remember
from surgeon.tui.dialogs.help import Help
from surgeon.tui.dialogs.lists.columns import ColumnChooser
from surgeon.tui.dialogs.lists.picker import Entry, Picker
from surgeon.tui.dialogs.preflight import Preflight
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.views.map import MapDialog
from surgeon.tui.dialogs.views.weights import WeightsReader, expert_lines
from surgeon.tui.drawing.cells import COLUMNS
from surgeon.tui.drawing.spans import Line, clean, fit
from surgeon.tui.workbench import Workbench


class ViewActions(Workbench):
    unfolded_before: frozenset[int] = frozenset()

    # --- moving

    def action_move(self, by: int) -> None:
        self.tree_.move(self.tree_.cursor + by)

    def action_move_page(self, by: int) -> None:
        self.tree_.move(self.tree_.cursor + by * self.tree_.page)

    def action_move_to(self, place: int) -> None:
        if place < 0 and self.count:
            self.go_to_layer(int(self.count))
            return
        self.tree_.move(place if place >= 0 else len(self.tree_.rows) + place)

    def action_move_layer(self, step: int) -> None:
        self.tree_.move(self.tree_.next_layer(step))

    def action_along(self, step: int) -> None:
        """The same tensor in the next layer when its row is there, else that layer."""
        row = self.row
        layers = [layer.index for layer in self.session.model.layers]
        if row is None or not layers:
            return
        if row.layer not in layers:
            self.tree_.move_to_key(layer_key(layers[0] if step > 0 else layers[-1]))
            return
        at = layers.index(row.layer) + step
        if not 0 <= at < len(layers):
            return
        keys = {other.key for other in self.tree_.rows}
        if isinstance(row, TensorRow):
            twin = row.name.replace(f"blk.{row.layer}.", f"blk.{layers[at]}.", 1)
            if twin in keys:
                self.tree_.move_to_key(twin)
                return
        self.tree_.move_to_key(layer_key(layers[at]))

    # --- folding

    def action_toggle_fold(self) -> None:
        row = self.row
        if row is not None and row.layer is not None and not self.view.flat:
            if isinstance(row, TensorRow):
                self.tree_.move_to_key(layer_key(row.layer))
            self.look(unfolded=self.view.unfolded ^ {row.layer})

    def action_unfold(self) -> None:
        row = self.row
        if not isinstance(row, LayerRow):
            return
        if row.unfolded:
            self.action_move(1)
        else:
            self.look(unfolded=self.view.unfolded | {row.layer})

    def action_fold(self) -> None:
        row = self.row
        if isinstance(row, LayerRow) and row.unfolded:
            self.look(unfolded=self.view.unfolded - {row.layer})
        elif isinstance(row, TensorRow) and row.layer is not None:
            self.tree_.move_to_key(layer_key(row.layer))

    def action_fold_all(self) -> None:
        everything = frozenset(layer.index for layer in self.session.model.layers)
        self.look(unfolded=frozenset() if self.view.unfolded else everything)

    def action_flat(self) -> None:
        self.look(flat=not self.view.flat)
        self.say("all tensors in one list; f again for layers" if self.view.flat else "layers")

    # --- filter and order

    async def action_filter(self) -> None:
        current = self.view.filter.text if self.view.filter else ""
        hint = "ffn_down · ~ffdn · size>100MB · cos>0.99 · type=Q6_K · is:pruned · !norm"
        prompt = Prompt("filter", self._check_filter, value=current, hint=hint, history="filters")
        await self.ask(prompt, self.apply_filter)

    def _check_filter(self, text: str) -> tuple[bool, Line]:
        try:
            found = parse_filter(text)
            if found is None:
                return True, [("empty: everything is shown", "muted")]
            rows = visible_rows(self.session, View(filter=found, flat=True))
        except (ValueError, SlowPatternError) as error:
            return False, [(clean(str(error)), "pruned")]
        count = f"{len(rows)} of {len(self.session.model.tensors)} tensors"
        if not rows and text.strip().isidentifier():
            return True, [(count, "warning"), (f"; ~{text.strip()} finds its letters in that order", "muted")]
        return True, [(count, "accent" if rows else "warning")]

    def apply_filter(self, text: str | None) -> None:
        if text is None:
            return
        found = parse_filter(text)
        if found is None:
            self.clear_filter()
            return
        if self.view.filter is None:
            self.unfolded_before = self.view.unfolded
        self.look(filter=found, unfolded=unfold_matches(self.session, found))

    def clear_filter(self) -> None:
        if self.view.filter is not None:
            self.look(filter=None, unfolded=self.unfolded_before)

    def action_clear(self) -> None:
        if self.range_from is not None:
            self.end_range(keep=False)
        elif self.message:
            self.unsay()
        elif self.view.filter is not None:
            self.clear_filter()
        elif self.view.sort is not None:
            self.look(sort=None)
        elif self.session.marks:
            self.session.marks = frozenset()
            self.show_rows()

    async def action_sort(self) -> None:
        entries = [Entry("", [(fit("file", 10), "text"), ("as stored, layers by number", "muted")], ("file",))]
        for key in SORTS:
            metric = METRICS.get(key)
            title = metric.title if metric else key
            help_ = metric.help if metric else COLUMNS[key].help if key in COLUMNS else "by name"
            entries.append(Entry(key, [(fit(title, 10), "text"), (help_, "muted")], (title,)))
        hint = "type a name, or ↑ ↓ · Enter apply, again to reverse · Esc cancel"
        await self.ask(Picker("order by", entries, self.view.sort or "", hint), self.apply_sort)

    def apply_sort(self, key: str | None) -> None:
        if key is None:
            return
        if not key:
            self.look(sort=None)
        elif key == self.view.sort:
            self.look(descending=not self.view.descending)
        else:
            self.look(sort=key, descending=key != "name")
        self.action_move_to(0)

    # --- columns, metric, panes

    async def action_columns(self) -> None:
        await self.ask(ColumnChooser(self.tree_.columns), self.apply_columns)

    def apply_columns(self, columns: tuple[str, ...] | None) -> None:
        if columns is not None:
            self.tree_.set_columns(columns)
            remember(self.session.model.file.path, "columns", {"shown": " ".join(columns)})
            self.show_rest()

    async def action_metric(self) -> None:
        entries = [
            Entry(key, [(fit(metric.title, 10), "text"), (metric.help, "muted")], (metric.title,))
            for key, metric in METRICS.items()
        ]
        await self.ask(Picker("metric of strip and curve", entries, self.metric.key), self.apply_metric)

    def apply_metric(self, key: str | None) -> None:
        if key is not None:
            self.metric = METRICS[key]
            self.show_rest()

    def action_detail(self) -> None:
        self.toggle_class("-no-detail")

    async def action_map(self, view: str = "") -> None:
        """The whole model at once; Enter there goes to the tensor here."""
        at = self.row.key if self.row else ""
        await self.ask(MapDialog(self.session, self.errors, self.bases(), at, view), self._from_map)

    def bases(self) -> dict[str, dict[str, str]]:
        """What the plan can be compared with on the map: name -> tensor -> type."""
        session = self.session
        bare = session.preview(replace(session.plan, rules=(), types=(), pruned=frozenset()))
        stored = {tensor.name: tensor.type_name for tensor in session.model.tensors}
        alone = {op.source: op.to_type for op in bare.ops}
        return {**dict(reversed(self.compared.items())), f"{session.plan.file_type} alone": alone, "the input": stored}

    def _from_map(self, name: str | None) -> None:
        layer = self.session.layer_of(name) if name is not None else None
        if layer is not None:
            self.view = replace(self.view, unfolded=self.view.unfolded | {layer})
        self.show_rows((name,) if name is not None else ())

    async def action_weights(self) -> None:
        """Read by a process that ends with the dialog."""
        row = self.row
        if not isinstance(row, TensorRow):
            self.say("weights: choose a tensor, not a layer", "muted")
            return
        sums = expert_sums(self.session)
        used = [] if sums is None or row.layer is None else expert_lines(sums, row.layer, row.tensor.short)
        await self.ask(WeightsReader(self.session.model, row.name, used))

    async def action_preflight(self) -> None:
        await self.ask(Preflight(self.session.resolution.problems))

    async def action_help(self) -> None:
        await self.ask(Help(self.config.keys))

    def action_palette(self) -> None:
        self.app.action_command_palette()
