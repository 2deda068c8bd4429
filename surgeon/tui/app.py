"""The application: themes, keys, the session's file, and the two jobs that run in threads (write, warm-up)."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import termios
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.filter import LineFilter
from textual.timer import Timer

from surgeon.errors import SurgeonError
from surgeon.model.kinds import refuse_imatrix
from surgeon.model.model import load_model
from surgeon.plan.recipe import load_recipe
from surgeon.session.session import Session, statistics_of
from surgeon.signals import ENDING, exit_code, heeded
from surgeon.streams import lasting_terminal
from surgeon.tui import autosave, unfinished
from surgeon.tui.command_palette import SurgeonCommands
from surgeon.tui.config import Config, load_config
from surgeon.tui.dialogs.progress import ProgressDialog
from surgeon.tui.drawing.ascii_filter import AsciiFilter
from surgeon.tui.drawing.theme import DARK, LIGHT, theme
from surgeon.tui.host import Host
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.messages import Reported, StatisticsReady, Warmed, WarmFailed, WriteFailed, Written
from surgeon.tui.jobs.warm_up import WarmUp
from surgeon.tui.jobs.writing import WriteJob
from surgeon.tui.main_screen import MainScreen

AUTOSAVE_DELAY = 0.5  # seconds without a change before the plan is kept
TERMINAL_SECONDS = 5.0  # between two looks whether the terminal is still there
LAST_SECONDS = 10.0  # for a write to end in order once the program was told to end
WARM_DELAY = 0.4  # seconds after the first paint, or a change of types, before kernels are compiled


class SurgeonApp(Host):
    CSS_PATH = "surgeon.tcss"
    TITLE = "surgeon"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar = {SurgeonCommands}
    BINDINGS: ClassVar = []

    def __init__(self, session: Session, config: Config, *, greeting: str = "", persistent: bool = True) -> None:
        """persistent: keep the plan between sessions, and compile kernels ahead."""
        self.ascii_filter: LineFilter | None = AsciiFilter() if config.ascii else None
        super().__init__()
        self.animation_level = "none"
        self.session = session
        self.config = config
        self.greeting = greeting
        self.persistent = persistent
        self.job: WriteJob | None = None
        self.leaving = False
        self.ended_by = 0
        self.warm_up = WarmUp(self.post_message)
        self._autosave: Timer | None = None
        self._warm: Timer | None = None
        for palette in (DARK, LIGHT):
            self.register_theme(theme(palette))
        self.theme = (LIGHT if config.theme == "light" else DARK).name

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = super().get_line_filters()
        return [*filters, self.ascii_filter] if self.ascii_filter is not None else filters

    def on_mount(self) -> None:
        self.set_class(self.ascii_filter is not None, "-ascii")
        self.set_keymap(self.config.keys)
        if not self.is_headless:
            for number in heeded(ENDING):
                asyncio.get_running_loop().add_signal_handler(number, self.end, number)
            self.set_interval(TERMINAL_SECONDS, self._end_without_terminal)
        self.main = MainScreen(self.session, self.config)
        self.push_screen(self.main)
        self.call_after_refresh(self._after_first_paint)

    def _after_first_paint(self) -> None:
        said = [*self.config.problems, self.greeting]
        if any(said):
            self.main.say(next(filter(None, said)), "warning" if self.config.problems else "text")
        if self.session.measure_later:
            self._measure_now()
        self.main.load_damages()
        self.main.load_costs()
        self.main.tidy()
        if self.persistent:
            self.main.offer_resume()
        self._schedule_warm_up()

    def _measure_now(self) -> None:
        """The statistics that were left for after the first paint, in a thread."""
        self.session.measure_later = False
        imatrix = self.session.imatrix
        if imatrix is not None:
            self.run_worker(lambda: self.post_message(StatisticsReady(imatrix, *statistics_of(imatrix))), thread=True)

    @on(StatisticsReady)
    def measured(self, event: StatisticsReady) -> None:
        if event.imatrix is self.session.imatrix:
            self.session.show_statistics(event.rows, event.layers, event.influence)
            self.main.show_rows()

    # --- the plan

    def plan_changed(self) -> None:
        """Keep the plan and make its kernels ready, a little after the last of a series of changes."""
        if self.persistent:
            if self._autosave is not None:
                self._autosave.stop()
            self._autosave = self.set_timer(AUTOSAVE_DELAY, self.keep_plan)
        self._schedule_warm_up()

    def keep_plan(self) -> None:
        self._autosave = None
        try:
            problem = autosave.keep(self.session.recipe(), self.session.model.file.path)
        except SurgeonError as error:
            problem = str(error)
        if problem:
            self.main.say(problem, "warning")

    def _schedule_warm_up(self) -> None:
        if not self.persistent:
            return
        if self._warm is not None:
            self._warm.stop()
        self._warm = self.set_timer(WARM_DELAY, lambda: self.warm_up.want(self.session.resolution))

    @on(Warmed)
    def warmed(self, event: Warmed) -> None:
        if not self.running_jobs:
            self._status(event.text)

    @on(WarmFailed)
    def warm_failed(self, event: WarmFailed) -> None:
        self._status("")
        self.main.say(event.text, "warning")

    def _status(self, text: str) -> None:
        self.main.status = text
        self.main.query_one("#header").redraw()  # type: ignore[attr-defined]

    # --- the write

    def start(self, job: WriteJob) -> bool:
        """Run `job` in a thread; False when another one is running (textual's `exclusive` would not stop that one)."""
        if self.job is not None and self.job.running:
            return False
        self.job = job
        if self.persistent and (problem := unfinished.note(job)):
            self.main.say(problem, "warning")
        self.run_worker(lambda: job.run(self.post_message), thread=True, exit_on_error=False, group="write")
        return True

    @on(Reported)
    def reported(self, event: Reported) -> None:
        job = self.job
        if job is None:
            return
        job.progress = event.progress
        total = event.progress.total_bytes
        part = event.progress.done_bytes / total if total else 1.0
        self._status("kernels" if event.progress.stage == "compiling" else f"writing {100 * part:.0f}%")
        self._show_job()

    @on(Written)
    def written(self, event: Written) -> None:
        if self.job is not None:
            self.job.summary = event.summary
            self._settle(self.job)
            self.main.record_write(self.job, event.summary)
            self.main.last_out = None
            self._ended(f"written {event.summary.paths[0]}", "accent")

    @on(WriteFailed)
    def write_failed(self, event: WriteFailed) -> None:
        if self.job is not None:
            self.job.failure = event.text
            self._settle(self.job)
            self.main.last_out = self.job.out
            self._ended(event.text, "warning" if event.cancelled else "pruned")

    def _ended(self, text: str, role: str) -> None:
        self._status("")
        if self.leaving:
            self.stop_and_exit()
        elif isinstance(self.screen, ProgressDialog):
            self._show_job()
        else:
            self.main.say(text, role)

    def _settle(self, job: WriteJob) -> None:
        """Forget the word on this write unless it left something to go on with."""
        if self.persistent and (job.summary is not None or not job.resume_log.exists()):
            unfinished.forget(job.resolution.model.file.path)

    def _show_job(self) -> None:
        if isinstance(self.screen, ProgressDialog):
            self.screen.redraw()

    def stop_and_exit(self) -> None:
        """Cancel what runs and leave when it has ended and cleaned up behind itself."""
        running = self.running_jobs
        if not running:
            self.exit(exit_code(self.ended_by) if self.ended_by else 0)
            return
        self.leaving = True
        for job in running:
            job.stop()

    def _end_without_terminal(self) -> None:
        """A terminal may go without a signal to this process (another one leads the session): then end as by one."""
        try:
            termios.tcgetattr(sys.__stdin__.fileno())  # type: ignore[union-attr]
        except (OSError, termios.error):
            self.end(signal.SIGHUP)

    def end(self, number: int) -> None:
        """SIGTERM or SIGHUP: keep the plan at once, let a write leave its part file, restore the terminal, leave."""
        if self.ended_by:
            return
        self.ended_by = number
        if self._autosave is not None:
            self._autosave.stop()
            self.keep_plan()
        # A terminal that is gone may hold up its restoring for ever; what matters is on the disk by then.
        if not self.is_headless:
            watchdog = threading.Timer(LAST_SECONDS, os._exit, (exit_code(number),))
            watchdog.daemon = True
            watchdog.start()
        if self.job is not None and self.job.running:
            self.job.stop(keep=True)
        self.stop_and_exit()

    @property
    def running_jobs(self) -> list[WriteJob | MeasureJob]:
        """The write and the run of the engine that have not ended."""
        return [job for job in (self.job, self.main.measure_job) if job is not None and job.running]

    async def on_unmount(self) -> None:
        if self._autosave is not None:
            self.keep_plan()


def open_session(
    path: Path, imatrix: Path | None, recipe: Path | None, *, restore: bool = True, measure_later: bool = False
) -> tuple[Session, str]:
    """The session for a model and what to say at the start; raises SurgeonError for files that cannot be read."""
    model = load_model(path)
    refuse_imatrix(model)
    session = Session(model, measure_later=measure_later)
    greeting = ""
    if recipe is not None:
        greeting = session.use_recipe(load_recipe(recipe), f"recipe {recipe.name}")
    elif restore:
        try:
            known = autosave.kept(path)
            if known is not None:
                greeting = session.use_recipe(known, "the plan of the last session") + "; u undoes it"
        except SurgeonError as error:
            greeting = f"the saved plan cannot be used: {error}"
    if imatrix is not None:
        session.use_imatrix(imatrix)
    return session, greeting


def run(path: Path, imatrix: Path | None = None, recipe: Path | None = None, **settings: Any) -> int:
    """Open the screen on a model; the exit code. `settings`, fields of Config, go before the config file unless None.

    Raises SurgeonError before the screen starts when a file cannot be read.
    """
    config = replace(load_config(), **{name: value for name, value in settings.items() if value is not None})
    session, greeting = open_session(path, imatrix, recipe, measure_later=True)
    app = SurgeonApp(session, config, greeting=greeting)
    # What is there by now stays to the end: looking through it for garbage would hold up a key for 30 ms.
    gc.freeze()
    gc.enable()
    lasting_terminal()
    code = app.run(mouse=config.mouse)
    if code is None:
        code = app.return_code or 0
    # Threads that compile kernels are daemons; the interpreter need not wait for them.
    return code
