"""The rules in their order, and the options in force: add, change, move, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.layer_lists import spans
from surgeon.plan import plan as plans
from surgeon.plan.plan import Plan
from surgeon.session.session import Session
from surgeon.session.typed_edits import option_words, without_option
from surgeon.tui.dialogs.base import LIST_KEYS, Choices, Dialog, Frame, text_of
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.drawing.spans import Line, clean, fit


class Rules(Dialog[None]):
    """Edits the session's plan directly; every edit can be undone in the tree."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *LIST_KEYS,
        Binding("a,colon", "add", show=False),
        Binding("enter", "edit", show=False, priority=True),
        Binding("x,delete", "delete", show=False),
        Binding("J", "shift(1)", show=False),
        Binding("K", "shift(-1)", show=False),
        Binding("u", "undo", show=False),
        Binding("ctrl+r", "redo", show=False),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def compose(self) -> ComposeResult:
        with Frame(classes="dialog") as frame:
            frame.border_title = "rules: the first that matches wins"
            frame.border_subtitle = "a add · Enter change · x delete · J K move · u undo · Esc close"
            yield Choices()

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Choices))
        self.show_rules()

    def keys(self) -> list[str]:
        plan = self.session.plan
        keys = [f"rule {index}" for index in range(len(plan.rules))]
        keys += ["by hand"] if plan.types else []
        keys += ["pruned"] if plan.pruned else []
        return keys + option_words(plan)

    def show_rules(self, at: str | None = None) -> None:
        theme = self.app.current_theme
        keys = self.keys()
        empty: Line = [("no rules yet: a adds one, for instance attn_v=q6_k", "muted")]
        entries = [(key, text_of([self._line(key)], theme)) for key in keys]
        choices = self.query_one(Choices)
        choices.fill(entries or [("", text_of([empty], theme))], at)
        if at in keys:
            choices.highlighted = keys.index(at)

    def _line(self, key: str) -> Line:
        plan = self.session.plan
        if key.startswith("rule "):
            rule = plan.rules[int(key[5:])]
            try:
                found = figures.counted(self.session.rule_count(rule.pattern), "tensor")
            except SurgeonError as error:
                return [(clean(str(rule)), "text"), (f"  {error}", "pruned")]
            wins = sum(op.rule == rule for op in self.session.resolution.kept)
            return [(fit(clean(str(rule)), 42), "text"), (f" {found}, decides {wins}", "muted")]
        if key == "by hand":
            return [(f"{len(plan.types)} types set by hand", "text"), ("  before any rule", "muted")]
        if key == "pruned":
            return [(f"prune {spans(plan.pruned)}", "pruned")]
        return [(clean(key), "text")]

    @property
    def chosen(self) -> str:
        return self.query_one(Choices).highlighted_id or ""

    def change(self, plan: Plan, label: str, at: str | None = None) -> None:
        self.session.change(plan, label)
        self.app.plan_changed()
        self.show_rules(at)

    async def action_add(self) -> None:
        await self._ask("", None)

    async def action_edit(self) -> None:
        if self.chosen.startswith("rule "):
            index = int(self.chosen[5:])
            await self._ask(str(self.session.plan.rules[index]), index)
        elif not self.chosen:
            await self._ask("", None)

    async def _ask(self, value: str, index: int | None) -> None:
        def taken(text: str | None) -> None:
            if text is None:
                return
            rule = plans.parse_rule(text.strip())
            plan = self.session.plan
            if index is not None:
                rules = (*plan.rules[:index], rule, *plan.rules[index + 1 :])
                self.change(replace(plan, rules=rules), f"rule {rule}", f"rule {index}")
            else:
                self.change(plans.with_rule(plan, rule), f"rule {rule}")

        hint = "regular expression = type, for instance ffn_down=q6_k"
        prompt = Prompt("rule", self._check, value=value, hint=hint)
        prompt.answered = taken
        await self.app.push_screen(prompt)

    def _check(self, text: str) -> tuple[bool, Line]:
        try:
            rule = plans.parse_rule(text.strip())
            found = self.session.rule_count(rule.pattern)
            return True, [(figures.counted(found, "tensor matches", "tensors match"), "accent")]
        except SurgeonError as error:
            return False, [(str(error), "muted")]

    def action_delete(self) -> None:
        key, plan = self.chosen, self.session.plan
        if key.startswith("rule "):
            index = int(key[5:])
            self.change(plans.without_rule(plan, index), f"delete rule {plan.rules[index]}")
        elif key == "by hand":
            self.change(replace(plan, types=()), "delete types set by hand")
        elif key == "pruned":
            self.change(plans.without_pruned(plan, plan.pruned), f"restore {spans(plan.pruned)}")
        elif key:
            self.change(without_option(plan, key), f"without {key}")

    def action_shift(self, by: int) -> None:
        plan = self.session.plan
        if not self.chosen.startswith("rule "):
            return
        index = int(self.chosen[5:])
        to = index + by
        if 0 <= to < len(plan.rules):
            self.change(plans.with_rule_moved(plan, index, to), f"move rule {plan.rules[index]}", f"rule {to}")

    def action_undo(self) -> None:
        self.session.undo()
        self.app.plan_changed()
        self.show_rules()

    def action_redo(self) -> None:
        self.session.redo()
        self.app.plan_changed()
        self.show_rules()
