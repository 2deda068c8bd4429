"""Everything that changes the plan; each can be undone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from surgeon import figures
from surgeon.anatomy import expert_model
from surgeon.errors import SurgeonError
from surgeon.folders import state_folder
from surgeon.gguf.identity import open_identity
from surgeon.plan.recipe import Recipe
from surgeon.session.experts.curve import ExpertCurve, last_curve
from surgeon.session.kept_plans import use_recipe
from surgeon.session.rows import TensorRow
from surgeon.session.session import Scope, layer_number
from surgeon.session.typed_edits import parse_command
from surgeon.tui.dialogs.lists.base_picker import BasePicker
from surgeon.tui.dialogs.lists.type_picker import BY_MIX, TypePicker, available_scopes
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.rules import Rules
from surgeon.tui.dialogs.views.experts import Experts
from surgeon.tui.dialogs.views.metadata import Metadata
from surgeon.tui.drawing.spans import Line
from surgeon.tui.workbench import Workbench


class EditActions(Workbench):
    # --- marks

    def action_mark(self) -> None:
        if self.range_from is not None:
            self.end_range()
            return
        if self.row is not None:
            self.session.toggle_mark(self.row.key)
            self.tree_.redraw()
            self.tree_.move(self.tree_.cursor + 1)
            self.show_rest()

    def action_range(self) -> None:
        """Mark rows from here to where the cursor goes."""
        if self.range_from is not None:
            self.end_range()
        elif self.row is not None:
            self.begin_range(self.row.key)

    def action_mark_kind(self) -> None:
        """This tensor in every layer, of those that the filter leaves; again takes the marks away."""
        row = self.row
        if not isinstance(row, TensorRow):
            self.say("on a tensor: marks it in every layer")
            return
        shown = self.shown
        names = frozenset(
            tensor.name
            for tensor in self.session.reached("kind", row.key)
            if self.view.filter is None or tensor.name in shown
        )
        marks = self.session.marks
        self.session.marks = marks - names if names <= marks else marks | names
        self.tree_.redraw()
        self.show_rest()
        self.say(f"{len(names)} {'unmarked' if names <= marks else 'marked'}")

    # --- prune and types

    def action_prune(self) -> None:
        """The marked layers, or the layer under the cursor."""
        row = self.row
        marked = {number for key in self.session.marks if (number := layer_number(key)) is not None}
        layers = marked or ({row.layer} if row is not None and row.layer is not None else set())
        if not layers:
            self.say("only layers can be pruned: blk.N", "warning")
            return

        def change() -> str:
            label = self.session.toggle_prune(layers)
            self.session.marks = frozenset(key for key in self.session.marks if layer_number(key) is None)
            return f"{label}: {self._sizes()}"

        self.change_plan(change)

    async def action_experts(self) -> None:
        if expert_model(self.session.model).layers:
            await self.ask(Experts(self.session, self._expert_curve()), lambda _: self.show_rows())
        else:
            self.say("this model has no experts", "warning")

    def _expert_curve(self) -> ExpertCurve:
        """What the last expert-scan of this model found."""
        with suppress(SurgeonError):  # without a state folder there is no scan either
            return last_curve(state_folder() / "expert-scan", open_identity(self.session.model.file))
        return ExpertCurve()

    async def action_type(self) -> None:
        row = self.row
        if row is None:
            return
        if row.pruned and available_scopes(self.session, row, self.shown) == ("all",):
            self.say("pruned: no type to choose")  # a list for all tensors, opened here, would be taken for the row's
            return
        picker = TypePicker(self.session, row, self.errors.setdefault(row.key, {}), self.shown)

        def taken(name: str | None) -> None:
            self.query_one("#detail").refresh()
            if name is not None:
                self._set_types([tensor.name for tensor in picker.tensors], None if name == BY_MIX else name)
            self.show_rest()

        await self.ask(picker, taken)

    def action_untype(self) -> None:
        row = self.row
        if row is not None:
            scope: Scope = "marked" if self.session.marks else "row"
            names = [tensor.name for tensor in self.session.reached(scope, row.key)]
            by_hand = dict(self.session.plan.types)
            names = [name for name in names if name in by_hand]
            if names:
                self._set_types(names, None)
            else:
                self.say("no type is set by hand here")

    def _set_types(self, names: list[str], type_name: str | None) -> None:
        self._change(lambda: self.session.set_types(names, type_name))

    async def action_base(self) -> None:
        def taken(name: str | None) -> None:
            if name is not None:
                self._change(lambda: self.session.set_file_type(name))

        await self.ask(BasePicker(self.session), taken)

    def _change(self, edit: Callable[[], str]) -> None:
        """Run an edit, and say what it costs: size, and predicted KL divergence where it is known."""
        before = self.session.predicted

        def change() -> str:
            said, after = f"{edit()}: {self._sizes()}", self.session.predicted
            if after is None:
                return said
            more = "" if before is None else f" ({figures.signed_divergence(after.kld - before.kld)})"
            return f"{said}, KLD {figures.divergence(after.kld)}{more}"

        self.change_plan(change)

    def _sizes(self) -> str:
        resolution = self.session.resolution
        return f"{figures.size(resolution.total_bytes)}, {resolution.bpw:.2f} bpw"

    # --- rules

    async def action_command(self, text: str = "") -> None:
        hint = "attn_v=q6_k · prune 26,29 · base q4_k_m · 26 · --pure · llama-quantize …"
        prompt = Prompt("rule or command", self._check_command, value=text, hint=hint, history="rules")
        await self.ask(prompt, self.apply_command)

    def _check_command(self, text: str) -> tuple[bool, Line]:
        if not text.strip():
            return False, [("llama-quantize's syntax; layer numbers as in the input", "muted")]
        if text.strip().isdecimal():
            return self._check_layer(text.strip())
        try:
            edit = parse_command(text, self.session)
            resolution = self.session.preview(edit.plan)
        except SurgeonError as error:
            return False, [(str(error), "muted")]
        was = self.session.resolution
        now = {op.source: op.to_type for op in resolution.kept}
        changed = sum(op.action != "drop" and now.get(op.source) != op.to_type for op in was.ops)
        if not changed and edit.plan.file_type == "COPY" and edit.plan.rules:
            return True, [("rules need a base type; press m, or type base q4_k_m", "warning")]
        sizes = f"{figures.size(resolution.total_bytes)}  {resolution.bpw:.2f} bpw"
        costs = self.session.costs
        predicted = None if costs is None else costs.predicted_of(resolution)
        sizes += "" if predicted is None else f"  KLD {figures.divergence(predicted.kld)}"
        tensors = figures.counted(changed, "tensor changes", "tensors change")
        return True, [(tensors, "accent" if changed else "warning"), (f"  → {sizes}", "text")]

    def _check_layer(self, text: str) -> tuple[bool, Line]:
        there = figures.typed_number(text) in self.session.tensors_of
        return there, [(f"go to layer {text}" if there else f"there is no layer {text}", "muted")]

    def apply_command(self, text: str | None) -> None:
        if text is None:
            return
        number = figures.typed_number(text.strip())
        if number is not None and number >= 0:
            self.go_to_layer(number)
            return
        try:
            edit = parse_command(text, self.session)
            if edit.recipe is not None:
                self.change_plan(partial(self._use_command, edit.recipe, edit.label))
                return
            changed = self.session.change(edit.plan, edit.label)
        except SurgeonError as error:
            self.fail(error)
            return
        self.plan_changed()
        self.say(f"{edit.label}: {self._sizes()}" if changed else f"{edit.label}: nothing changes")
        if changed and self.session.plan.file_type == "COPY" and self.session.plan.rules:
            self.say("rules need a base type; press m", "warning")

    def _use_command(self, recipe: Recipe, label: str) -> str:
        return f"{use_recipe(self.session, recipe, label)}: {self._sizes()}"

    async def action_rules(self) -> None:
        await self.ask(Rules(self.session), lambda _: self.show_rows())

    async def action_metadata(self) -> None:
        await self.ask(Metadata(self.session), lambda _: self.show_rows())

    # --- undo and redo

    def action_undo(self) -> None:
        label = self.session.undo()
        if label is None:
            self.say("nothing to undo")
            return
        self.plan_changed()
        self.say(f"undone: {label}   {self._sizes()}")

    def action_redo(self) -> None:
        label = self.session.redo()
        if label is None:
            self.say("nothing to redo")
            return
        self.plan_changed()
        self.say(f"again: {label}   {self._sizes()}")
