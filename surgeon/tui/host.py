"""What screens, dialogs and widgets may ask of the application. `app.SurgeonApp` is the one host there is.

They know this class and not the application, which imports them all: the imports then have one direction.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from surgeon.session.session import Session
from surgeon.tui.autosave import PlanFile
from surgeon.tui.config import Config
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.jobs.writing import WriteJob
from surgeon.tui.key_order import KeyOrder
from surgeon.tui.terminal import Beside


class Host(KeyOrder):
    """config: of the whole program; job: the newest write; leaving: the program ends once its jobs have;
    beside: what is said to the terminal beside the picture."""

    config: Config
    job: WriteJob | None
    leaving: bool
    beside: Beside

    @property
    @abstractmethod
    def session(self) -> Session:
        """What is on the table of the model that is shown."""

    @property
    @abstractmethod
    def other_models(self) -> list[Path]:
        """The open models that are not shown."""

    @abstractmethod
    async def switch_model(self) -> None:
        """Show the next of the open models."""

    @abstractmethod
    def draw_anew(self) -> None:
        """Draw the whole screen, whatever stands on the terminal."""

    @abstractmethod
    def begin_queues(self) -> None:
        """Begin the next entry of a model's queue, where nothing runs."""

    @abstractmethod
    def plan_changed(self) -> None:
        """Keep the plan and make its kernels ready, a little after the last of a series of changes."""

    @abstractmethod
    def plan_file_of(self, session: Session) -> PlanFile | None:
        """Where the plan of a session is kept; None: nowhere."""

    @abstractmethod
    def start(self, job: WriteJob) -> bool:
        """Run `job` in a thread; False when another write is running."""

    @abstractmethod
    def stop_and_exit(self) -> None:
        """Cancel what runs, and leave when it has ended and cleaned up behind itself."""

    @abstractmethod
    def tell_of_end(self, began: float, text: str) -> None:
        """Bell and notification for a job that began so long ago (`time.monotonic`) that nobody waits for it."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Ask whether to stop what runs; say so where nothing does."""

    @property
    @abstractmethod
    def running_jobs(self) -> list[WriteJob | MeasureJob]:
        """The write and the run of the engine that have not ended."""
