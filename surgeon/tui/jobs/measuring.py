"""Runs of the engine behind the screen: their state, the thread of each, and what it reports. One runs at a time."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon.errors import Cancelled, SurgeonError
from surgeon.measure.progress import Standing
from surgeon.tui.drawing.spans import Line
from surgeon.tui.jobs.workers import Workers

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.fleet.cluster import Fleet

TICK = 0.1  # seconds between two reports at most: each is a few hundred bytes on the wire


class Stood(Message):
    """The job's `standing` is newer than what is shown."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Stood)


class Ended(Message):
    """The job is over; its `failure` says how, if it did not end well."""

    def __init__(self, job: MeasureJob) -> None:
        super().__init__()
        self.job = job


class MeasureJob(ABC):
    """title: for dialogs; word: for the header. A subclass yields its Standings, and messages for the screen."""

    title = word = ""

    def __init__(self, workers: Workers | None = None) -> None:
        """workers: of a fleet that does the work, where `use` knows how to give it to them."""
        self.workers = workers or Workers()
        self.cancelled = threading.Event()
        self.standing: Standing | None = None
        self.failure = ""
        self.running = True
        self.began = time.monotonic()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def items(self) -> Iterator[Standing | Message]:
        """Do the work, telling how far it is."""

    def use(self, fleet: Fleet) -> None:
        """Have the work done over this fleet."""
        raise TypeError(f"{type(self).__name__} works on this machine alone")

    @abstractmethod
    def engine_run(self) -> EngineRun | None:
        """The engine's run in hand, for its log."""

    def result(self) -> list[Line]:
        """What to show at the end."""
        return []

    def kept(self) -> str:
        """What a run that was stopped leaves, in a few words."""
        return ""

    def chosen(self) -> tuple[int, ...]:
        """Layers that the run says to prune: Enter does it."""
        return ()

    @property
    def doing(self) -> str:
        """A sentence's beginning, for the question before quitting."""
        return f"{self.title[0].upper()}{self.title[1:]} is running"

    def news(self) -> str:
        """What came of it, in a few words, for a notification."""
        return f"{self.title}: {self.failure or 'done'}"

    @property
    def keeps(self) -> str:
        """What stopping it leaves, for the question before."""
        kept = self.kept()
        return f"{kept[0].upper()}{kept[1:]}." if kept else ""

    def log(self) -> str:
        run = self.engine_run()
        return run.log_text() if run is not None else ""

    def start(self, tell: Callable[[Message], object]) -> None:
        # A daemon, not textual's worker: those share a pool, and leaving waits for it with no limit.
        self._thread = threading.Thread(target=self._run, args=(tell,), name="measure", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 0.0) -> None:
        """Cancel, and wait so long for the child's end and the removal of temporary files."""
        self.cancelled.set()
        if self._thread is not None and seconds:
            self._thread.join(seconds)

    def _steps(self) -> Iterator[Standing | Message]:
        """The items, after the workers are there."""
        if self.workers.address is not None:
            yield Standing("connecting", note=self.workers.address)
        with self.workers.joined(self.cancelled) as fleet:
            if fleet is not None:
                self.use(fleet)
            yield from self.items()

    def _run(self, tell: Callable[[Message], object]) -> None:
        last = 0.0
        try:
            for item in self._steps():
                if not isinstance(item, Standing):
                    tell(item)
                    continue
                new_stage = self.standing is None or self.standing.stage != item.stage
                self.standing = item
                now = time.monotonic()
                if new_stage or now - last >= TICK:
                    last = now
                    tell(Stood())
        except Cancelled:
            kept = self.kept()
            self.failure = f"stopped{': ' + kept if kept else ''}"
        except SurgeonError as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = f"{error.filename or self.title}: {error.strerror or error}"
        except Exception as error:  # a defect must not take the session down: the plan is still on the table
            self.failure = f"{self.title}: {type(error).__name__}: {error}"
        self.running = False
        tell(Ended(self))


def engine_missing(library: str | None = None) -> str:
    """Why the engine cannot run here, in one line; '' where it can. library: a folder that was named for it."""
    from surgeon.engine.libraries import find_libraries

    try:
        find_libraries(library)
    except SurgeonError as error:
        return str(error)
    return ""
