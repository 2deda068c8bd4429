"""The application: themes, keys, the session's file, and the two jobs that run in threads (write, warm-up)."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console, RenderableType
from textual import events, on
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.filter import LineFilter
from textual.screen import Screen
from textual.timer import Timer

from surgeon.errors import SurgeonError
from surgeon.plan.plan import Plan
from surgeon.session.kept_plans import kept_recipe
from surgeon.session.session import Session, statistics_of
from surgeon.signals import ENDING, exit_code, heeded
from surgeon.streams import lasting_terminal
from surgeon.tui import unfinished
from surgeon.tui.autosave import PlanFile
from surgeon.tui.command_palette import SurgeonCommands
from surgeon.tui.config import Config, load_config
from surgeon.tui.dialogs.confirm import Confirm
from surgeon.tui.dialogs.running.job import JobDialog
from surgeon.tui.dialogs.running.progress import ProgressDialog
from surgeon.tui.drawing.ascii_filter import AsciiFilter
from surgeon.tui.drawing.no_colours import NoColours
from surgeon.tui.drawing.sixteen_colours import SixteenColours
from surgeon.tui.drawing.theme import palette_of, theme_of
from surgeon.tui.host import Host
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.messages import NotKept, Reported, StatisticsReady, Warmed, WarmFailed, WriteFailed, Written
from surgeon.tui.jobs.warm_up import WarmUp
from surgeon.tui.jobs.workers import with_workers
from surgeon.tui.jobs.writing import WriteJob
from surgeon.tui.main_screen import MainScreen
from surgeon.tui.opening import Opened, open_session
from surgeon.tui.picture import Changes, Picture
from surgeon.tui.terminal import Beside, SparingDriver

AUTOSAVE_DELAY = 0.5  # seconds without a change before the plan is kept
TERMINAL_SECONDS = 5.0  # between two looks whether the terminal is still there
LAST_SECONDS = 10.0  # for a write to end in order once the program has to end
LONG_JOB = 10.0  # seconds after which nobody is taken to wait for a job's end
GARBAGE = 50_000  # objects made between two looks for garbage; a thing that no cycle holds is freed at once anyway
WARM_DELAY = 0.4  # seconds after the first paint, or a change of types, before kernels are compiled


class SurgeonApp(Host):
    CSS_PATH = "surgeon.tcss"
    TITLE = "surgeon"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar = {SurgeonCommands}
    BINDINGS: ClassVar = []

    def __init__(
        self,
        session: Session,
        config: Config,
        *,
        greeting: str = "",
        plan_file: PlanFile | None = None,
        persistent: bool = True,
        others: Sequence[Opened] = (),
    ) -> None:
        """plan_file: where the plan is kept between sessions; persistent: compile kernels ahead, keep the plan;
        others: more models, to which Ctrl+T switches."""
        self.ascii_filter: LineFilter | None = AsciiFilter() if config.ascii else None
        palette = palette_of(config.theme, config.colours)
        self._sixteen, self._no_colours = SixteenColours(palette), NoColours(palette)
        super().__init__()
        # A traceback at the end passes the filter of hostile text, which would spell out the codes of colours.
        self.error_console = Console(markup=False, highlight=False, stderr=True, color_system=None)
        self.beside = Beside(None)
        self.animation_level = "none"
        if plan_file is None and persistent:
            plan_file = PlanFile(session.model.file.path, 1, -1)
        self.tables = [Opened(session, greeting, plan_file), *others]
        self.at = 0
        self.mains: list[MainScreen] = []
        self._kept: dict[int, Plan] = {}  # the plans as they are in their files
        self.config = config
        self.persistent = persistent
        self.job: WriteJob | None = None
        self.leaving = False
        self.ended_by = 0
        self.warm_up = WarmUp(self.post_message)
        self._autosave: Timer | None = None
        self._keeping = threading.Lock()
        self._warm: Timer | None = None
        self.register_theme(theme_of(palette))
        self.theme = palette.name

    def get_line_filters(self) -> Sequence[LineFilter]:
        own = [self.ascii_filter] if self.ascii_filter is not None else []
        if self.no_color:
            return [*own, self._no_colours]
        if self.console.color_system == "standard" and not self.is_headless:
            own.append(self._sixteen)
        return [*super().get_line_filters(), *own]

    # --- what is sent to the terminal

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        driver = self._driver
        if isinstance(renderable, (LayoutUpdate, ChopsUpdate)) and isinstance(driver, SparingDriver):
            if self._batch_count:
                return  # more is to come, and the picture notes only what is sent
            changes = Changes(renderable, driver.picture, self.console)
            cursor = screen.outer_size.clamp_offset(self.cursor_position)
            if not changes.text and cursor == self._previous_cursor_position:
                return  # textual would send the cursor to where it is
            # Textual itself passes its updates, which are no rich renderables, by this type.
            renderable = changes  # type: ignore[assignment]
        super()._display(screen, renderable)

    def on_resize(self, event: events.Resize) -> None:
        self._forget_picture()

    def draw_anew(self) -> None:
        self._forget_picture()
        self.refresh()

    def _forget_picture(self) -> None:
        """The terminal may show something else by now."""
        if isinstance(self._driver, SparingDriver):
            self._driver.picture = Picture()

    async def on_mount(self) -> None:
        self.set_class(self.ascii_filter is not None, "-ascii")
        self.set_keymap(self.config.keys)
        if not self.is_headless:
            for number in heeded(ENDING):
                asyncio.get_running_loop().add_signal_handler(number, self.end, number)
            self.set_interval(TERMINAL_SECONDS, self._end_without_terminal)
        self.mains = [MainScreen(table.session, self.config) for table in self.tables]
        for place, main in enumerate(self.mains):
            self.install_screen(main, f"model-{place}")
            for other in self.tables:
                if other.session is not main.session:
                    main.take_for_comparison(other.session.model)
        self.beside = Beside(self._driver)
        await self.push_screen(self.main)  # keys typed while the program starts are for it
        self.call_after_refresh(self._after_first_paint)

    @property
    def main(self) -> MainScreen:
        """The main screen of the model that is shown."""
        return self.mains[self.at]

    @property
    def session(self) -> Session:
        return self.tables[self.at].session

    @property
    def other_models(self) -> list[Path]:
        return [table.session.model.file.path for table in self.tables if table.session is not self.session]

    async def switch_model(self) -> None:
        """Show the next of the open models."""
        if len(self.mains) < 2:
            self.main.say("one model is open; surgeon A B opens two")
            return
        self.at = (self.at + 1) % len(self.mains)
        first = not self.main.is_attached
        await self.switch_screen(f"model-{self.at}")
        self.main.show_status(self.main.status)
        if first:
            self.call_after_refresh(self._after_first_paint)
        else:
            self.main.say(self.session.model.file.path.name)
        self._schedule_warm_up()

    def _after_first_paint(self) -> None:
        self.main.show_status(self.main.status)
        said = [*self.config.problems, self.tables[self.at].greeting]
        if any(said):
            self.main.say(next(filter(None, said)), "warning" if self.config.problems else "text")
        if self.session.measure_later:
            self._measure_now()
        self.main.load_damages()
        self.main.load_costs()
        self.main.tidy()
        if self.persistent:
            self.main.tell_of_queue()
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
        for main in self.mains:
            if event.imatrix is main.session.imatrix:
                main.session.show_statistics(event.rows, event.layers, event.influence)
                main.show_rows()

    # --- the plan

    def plan_changed(self) -> None:
        """Keep the plan and make its kernels ready, a little after the last of a series of changes."""
        if self.persistent:
            if self._autosave is not None:
                self._autosave.stop()
            self._autosave = self.set_timer(AUTOSAVE_DELAY, self._keep_beside)
        self._schedule_warm_up()

    def keep_plan(self) -> None:
        """Of every model, where it has changed."""
        self._autosave = None
        for place in range(len(self.tables)):
            self._keep(place)

    def _keep_beside(self) -> None:
        """The same in a thread: a slow disk must not hold up the keys."""
        self._autosave = None
        for place in range(len(self.tables)):
            self.run_worker(partial(self._keep, place), thread=True, exit_on_error=False, group="autosave")

    def _keep(self, place: int) -> None:
        table = self.tables[place]
        with self._keeping:  # the last to get here sees the latest plan
            plan = table.session.plan
            if table.plan_file is None or self._kept.get(place) is plan:
                return
            try:
                problem = table.plan_file.keep(kept_recipe(table.session))
            except SurgeonError as error:
                problem = str(error)
            if not problem:
                self._kept[place] = plan
        if problem:
            self.post_message(NotKept(problem))

    @on(NotKept)
    def not_kept(self, event: NotKept) -> None:
        self.main.say(event.text, "warning")

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
        self.main.show_status(text)

    def plan_file_of(self, session: Session) -> PlanFile | None:
        if not self.persistent:
            return None
        return next((table.plan_file for table in self.tables if table.session is session), None)

    def _owner(self, job: WriteJob) -> MainScreen:
        """The main screen of the model that is written."""
        return next((main for main in self.mains if main.session.model is job.resolution.model), self.main)

    def begin_queues(self) -> None:
        for main in self.mains:
            main.begin_next()

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
        done = with_workers(f"writing {100 * part:.0f}%", job.workers.standing)
        self._status("kernels" if event.progress.stage == "compiling" else done)
        self._owner(job).show_running()
        self._show_job()

    @on(Written)
    def written(self, event: Written) -> None:
        if self.job is not None:
            self.job.summary = event.summary
            self._settle(self.job)
            owner = self._owner(self.job)
            owner.record_write(self.job, event.summary)
            owner.last_out = None
            self._ended(f"written {event.summary.paths[0]}", "accent")

    @on(WriteFailed)
    def write_failed(self, event: WriteFailed) -> None:
        if self.job is not None:
            self.job.failure = event.text
            self._settle(self.job)
            self._owner(self.job).last_out = self.job.out
            self._ended(event.text, "warning" if event.cancelled else "pruned")

    def tell_of_end(self, began: float, text: str) -> None:
        if time.monotonic() - began >= LONG_JOB:
            self.beside.notice(text)

    def _ended(self, text: str, role: str) -> None:
        self._status("")
        if self.job is not None:
            self.tell_of_end(self.job.began, text)
        if self.leaving:
            self.stop_and_exit()
            return
        if self.job is not None:
            self._owner(self.job).job_ended(self.job)
        if isinstance(self.screen, ProgressDialog):
            self._show_job()
        else:
            self.main.say(text, role)

    def _settle(self, job: WriteJob) -> None:
        """Forget the word on this write unless it left something to go on with."""
        if self.persistent and (job.summary is not None or not job.resume_log.exists()):
            unfinished.forget(job.resolution.model.file.path)

    def _show_job(self) -> None:
        if isinstance(self.screen, JobDialog):
            self.screen.redraw()

    def ask_to_stop(self) -> None:
        jobs = self.running_jobs
        if not jobs:
            self.main.say("nothing is running: q quits")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._stop(jobs)
            self._show_job()

        question = " ".join(f"{job.doing}. {job.keeps}" for job in jobs)
        confirm = Confirm("stop", question, "stop")
        confirm.answered = answered
        self.push_screen(confirm)

    def _stop(self, jobs: Sequence[WriteJob | MeasureJob]) -> None:
        """Whatever is finished by now stays, to be resumed."""
        for job in jobs:
            if isinstance(job, WriteJob):
                job.stop(keep=True)
            else:
                job.stop()

    def key_done(self, key: str) -> None:
        self.main.key_done(key)

    def stop_and_exit(self) -> None:
        """Cancel what runs and leave when it has ended and cleaned up behind itself."""
        running = self.running_jobs
        if not running:
            self.exit(exit_code(self.ended_by) if self.ended_by else 0)
            return
        self.leaving = True
        self._stop(running)

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
        jobs = (self.job, *(main.measure_job for main in self.mains))
        return [job for job in jobs if job is not None and job.running]

    async def on_unmount(self) -> None:
        self.beside.leave()
        if self._autosave is not None:
            self.keep_plan()


def run(
    path: Path, imatrix: Path | None = None, recipe: Path | None = None, *, others: Sequence[Path] = (), **settings: Any
) -> int:
    """Open the screen on a model; the exit code. `settings`, fields of Config, go before the config file unless None.

    others: more models, without an importance matrix or a recipe of the command line.

    Raises SurgeonError before the screen starts when a file cannot be read.
    """
    config = replace(load_config(), **{name: value for name, value in settings.items() if value is not None})
    opened = open_session(path, imatrix, recipe, measure_later=True)
    more = [open_session(other, None, None, measure_later=True) for other in others]
    app = SurgeonApp(opened.session, config, greeting=opened.greeting, plan_file=opened.plan_file, others=more)
    # What is there by now stays to the end: looking through it for garbage would hold up a key for 30 ms. What one key
    # makes (a layer pruned: 16,000 operations of a large model) is not looked through while it is made either.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    gc.enable()
    lasting_terminal()
    code = app.run(mouse=config.mouse)
    if code is None:
        code = app.return_code or 0
    # Threads that compile kernels are daemons; the interpreter need not wait for them.
    return code
