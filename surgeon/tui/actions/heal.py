"""H: matrices refitted to make up for the pruned layers."""

from __future__ import annotations

from pathlib import Path

from textual import on

from surgeon import figures
from surgeon.layer_lists import spans
from surgeon.plan import plan as plans
from surgeon.plan.recipe import read_recipe
from surgeon.session.queue import Entry as Queued
from surgeon.trials.records import recipe_text
from surgeon.tui.actions.measure import MeasureActions
from surgeon.tui.answers import remembered
from surgeon.tui.jobs.healing import HealJob, HealMade


class HealActions(MeasureActions):
    async def action_heal(self) -> None:
        from surgeon.tui.dialogs.forms.heal_form import ASKED, heal_form

        session = self.session
        if not session.plan.pruned:
            self.say("nothing to heal: mark layers to prune first (p)", "warning")
            return
        if not self._ready():
            return
        form = heal_form(session, remembered(session.model.file.path, "heal", ASKED), self.ground)
        entry = Queued("heal", f"without {spans(session.plan.pruned, 4)}", recipe=recipe_text(session.plan, None))
        await self.offer(form, entry, keep=ASKED)

    def heal_job(self, entry: Queued) -> HealJob:
        from surgeon.folders import cache_folder
        from surgeon.measure.healing.heal_run import HealRun
        from surgeon.tui.dialogs.forms.heal_form import request_of

        plan = read_recipe(entry.recipe, Path("/"), entry.title).plan
        return HealJob(HealRun(request_of(self.session.model, plan, dict(entry.answers)), self.engine, cache_folder()))

    @on(HealMade)
    def healed(self, event: HealMade) -> None:
        """The heal becomes part of the plan, if that prunes the same layers still."""
        if event.pruned != self.session.plan.pruned:
            layers = spans(event.pruned)
            self.say(f"{event.healing.file} is kept: it is for pruning {layers}, the plan has changed", "warning")
            return

        def change() -> str:
            tensors = figures.counted(event.matrices, "tensor")
            self.session.change(plans.with_healing(self.session.plan, event.healing), f"heal {tensors}")
            return f"healed {tensors}; u undoes it"

        self.change_plan(change)
