"""Work begun at once or put into the queue: the same entry, and the same way from it to a job."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from surgeon.errors import SurgeonError
from surgeon.session.queue import Entry, Queue
from surgeon.tui.answers import Answers, remember
from surgeon.tui.autosave import plan_path
from surgeon.tui.dialogs.forms.form import Form
from surgeon.tui.jobs.measuring import MeasureJob
from surgeon.tui.workbench import Workbench


class QueueingActions(Workbench):
    _queue: Queue | None = None

    @property
    def queue(self) -> Queue:
        """The queue of this model, as the last session left it."""
        if self._queue is None:
            plan_file = self.app.plan_file_of(self.session)
            if plan_file is None:
                self._queue = Queue()
            else:
                try:
                    path = plan_path(plan_file.model, plan_file.number).with_suffix(".queue.json")
                    self._queue = Queue.kept(path, self.inputs)
                except SurgeonError:  # no state folder: what is queued lasts as long as the program
                    self._queue = Queue()
        return self._queue

    @abstractmethod
    def begin(self, entry: Entry) -> None:
        """Begin the work of an entry at once, with its dialog. Raises SurgeonError."""

    @abstractmethod
    def begin_next(self) -> None:
        """Begin the next entry of the queue where nothing runs."""

    def enqueue(self, *entries: Entry) -> None:
        try:
            self.queue.add(*entries)
        except SurgeonError as error:
            self.fail(error)
        what = entries[0].title if len(entries) == 1 else f"{len(entries)} entries"
        waits = len(self.queue.waiting)
        self.say(f"queued: {what} · {waits} waiting{', paused' if self.queue.paused else ''} · L shows them")
        self.begin_next()

    async def offer(
        self,
        form: Form,
        entry: Entry,
        *,
        keep: tuple[str, ...] | None = None,
        before: Callable[[Answers, Callable[[Answers], None]], None] | None = None,
    ) -> None:
        """Ask `form`; begin the work, or queue it where something runs or ^L was pressed.

        entry: without the answers (those it has are added to them); keep: names of the answers to be remembered for the
        next time (None: all); before: looks at the answers first, and hands them on.
        """
        source = self.session.model.file.path

        def agreed(begin: Callable[[Entry], None], answers: Answers | None) -> None:
            if answers is None:
                return
            names = answers if keep is None else keep
            remember(source, entry.kind, {name: answers[name] for name in names})
            whole = {**answers, **entry.answers}

            def go_on(found: Answers) -> None:
                begin(Entry(entry.kind, entry.title, found, entry.recipe))

            if before is None:
                go_on(whole)
            else:
                before(whole, go_on)

        form.busy = self.measuring
        form.to_queue = lambda answers: agreed(self.enqueue, answers)
        await self.ask(form, lambda answers: agreed(self.enqueue if self.measuring else self._begin_now, answers))

    @property
    def measuring(self) -> bool:
        """Whether a run of the engine is in hand: there is one at a time."""
        return any(isinstance(job, MeasureJob) for job in self.app.running_jobs)

    def _begin_now(self, entry: Entry) -> None:
        try:
            self.begin(entry)
        except (SurgeonError, OSError) as error:
            self.say(str(error), "pruned")
