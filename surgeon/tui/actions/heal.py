"""H: matrices refitted to make up for the pruned layers."""

from __future__ import annotations

from textual import on

from surgeon.errors import SurgeonError
from surgeon.layer_lists import spans
from surgeon.plan import plan as plans
from surgeon.tui.actions.measure import MeasureActions
from surgeon.tui.answers import Answers, remember, remembered
from surgeon.tui.jobs.healing import HealJob, HealMade


class HealActions(MeasureActions):
    async def action_heal(self) -> None:
        from surgeon.folders import cache_folder
        from surgeon.measure.healing import HealRun
        from surgeon.tui.dialogs.heal_form import ASKED, heal_form, request_of

        session = self.session
        if not session.plan.pruned:
            self.say("nothing to heal: mark layers to prune first (p)", "warning")
            return
        if not await self._ready():
            return
        source = session.model.file.path

        def answered(answers: Answers | None) -> None:
            if answers is None:
                return
            remember(source, "heal", {key: answers[key] for key in ASKED})
            try:
                self._begin(HealJob(HealRun(request_of(session, answers), self.engine, cache_folder())))
            except SurgeonError as error:
                self.fail(error)

        await self.ask(heal_form(session, remembered(source, "heal", ASKED)), answered)

    @on(HealMade)
    def healed(self, event: HealMade) -> None:
        """The heal becomes part of the plan, if that prunes the same layers still."""
        if event.pruned != self.session.plan.pruned:
            layers = spans(event.pruned)
            self.say(f"{event.healing.file} is kept: it is for pruning {layers}, the plan has changed", "warning")
            return

        def change() -> str:
            self.session.change(plans.with_healing(self.session.plan, event.healing), f"heal {event.matrices} tensors")
            return f"healed {event.matrices} tensors; u undoes it"

        self.change_plan(change)
