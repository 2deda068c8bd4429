"""This side: a connection to a Dask scheduler, tasks given out and results taken as they come."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self, TypeVar

from surgeon import __version__
from surgeon.engine.errors import EngineError, EngineMissing
from surgeon.engine.protocol import Engine
from surgeon.errors import Cancelled, SurgeonError
from surgeon.fleet.errors import INSTALL, FleetError
from surgeon.fleet.files import shared_files
from surgeon.fleet.order import Greeting, Order, build_of, disagreement, greet, perform
from surgeon.fleet.settings import engine_here
from surgeon.fleet.warm import release_idle
from surgeon.folders import make_private

RESOURCE = "engine"
_CONNECT_SECONDS = 10.0
_ANSWER_TIMES = 4  # as long as connecting may take, for a worker to start its llama.cpp
_POLL_SECONDS = 0.1  # how long a cancel may go unseen
_AHEAD = 2  # tasks given out for each worker, so that none waits for this machine
_COUNT_SECONDS = 5.0  # between two looks at who is there
_START = f"dask worker ADDRESS --nthreads 1 --resources {RESOURCE}=1"
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Fleet:
    """The workers of one scheduler that offer `engine=1`.

    needs_engine: whether llama.cpp runs in the tasks; build: the llama.cpp that all have; standing: `3 workers · 12/40
    tasks`, of those that `each` gave out last. Use it as a context.
    """

    def __init__(
        self, address: str, engine: Engine, cancelled: threading.Event | None = None, *, needs_engine: bool = True
    ) -> None:
        self.address, self.engine = address, engine
        self.cancelled = cancelled or threading.Event()
        self.build = ""
        self.standing = ""
        self._needs_engine = needs_engine
        self._counted, self._count = 0.0, 0
        self._client: Any = None

    def __enter__(self) -> Self:
        self._client = self._attentively(lambda: _connected(self.address), lambda client: client.close())
        try:
            self._admit()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # the scheduler may be gone: there is nothing left to say goodbye to
            if self._client.status == "running":
                self._client.run(release_idle, wait=False)
            self._client.close(timeout=2)

    @property
    def n_workers(self) -> int:
        """How many there are now; looked up every few seconds."""
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            self._counted = time.monotonic()
            with suppress(Exception):  # a scheduler that is gone shows at the next result
                self._count = len(self._workers())
        return self._count

    @property
    def title(self) -> str:
        """For progress lines."""
        return f"{self.n_workers} worker{'s' if self.n_workers != 1 else ''}"

    def each(
        self,
        task: Callable[..., Any],
        calls: Mapping[Key, tuple[Any, ...]],
        files: tuple[Path | str | None, ...] = (),
        ahead: int | None = None,
    ) -> Iterator[tuple[Key, Any]]:
        """(key, result) of `task(here, *arguments)` for every call, as they come; they are given out in order.

        files: what the tasks read; ahead: how many tasks may be beyond the oldest one that is not done (None: any).
        Raises Cancelled, FleetError, and what a task raises; the others are then cancelled on their workers.
        """
        order = Order(self.build, self.engine, shared_files(files))
        waiting, running = list(calls), dict[Key, Any]()
        done: queue.SimpleQueue[Key] = queue.SimpleQueue()
        places = {key: place for place, key in enumerate(waiting)}
        self._stands(0, len(calls))
        try:
            while waiting or running:
                while waiting and self._has_room(running, places, waiting[0], ahead):
                    key = waiting.pop(0)
                    running[key] = self._submit(order, task, calls[key], lambda _, key=key: done.put(key))
                for key in self._finished(done, running):
                    result = self._result(running.pop(key))
                    self._stands(len(calls) - len(waiting) - len(running), len(calls))
                    yield key, result
        finally:
            with suppress(Exception):  # they are unwanted, and so is their scheduler where it is gone
                self._client.cancel(list(running.values()), force=True)

    def _stands(self, done: int, total: int) -> None:
        self.standing = f"{self.title} · {done}/{total} tasks"

    def _has_room(self, running: Mapping[Key, Any], places: Mapping[Key, int], key: Key, ahead: int | None) -> bool:
        if running and ahead is not None and places[key] - min(places[one] for one in running) > ahead:
            return False
        return len(running) < max(1, _AHEAD * self.n_workers)

    def _submit(self, order: Order, task: Callable[..., Any], arguments: tuple[Any, ...], told: Any) -> Any:
        future = self._client.submit(
            perform, order, task, *arguments, pure=False, resources={RESOURCE: 1}, key=None, priority=0
        )
        future.add_done_callback(told)
        return future

    def _finished(self, done: queue.SimpleQueue[Key], running: Mapping[Key, Any]) -> Iterator[Key]:
        """At most one key, after a moment of waiting. Raises Cancelled, FleetError where the scheduler is gone."""
        self._go_on()
        try:
            key = done.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        if key in running:
            yield key

    def _go_on(self) -> None:
        """Raises Cancelled, FleetError where the scheduler is gone."""
        if self.cancelled.is_set():
            raise Cancelled("the run was cancelled")
        if self._client.status != "running":
            raise self._gone()

    def _result(self, future: Any) -> Any:
        """Where its worker has ended, and taken it along, it is worked out again: it may take as long as a task."""
        from distributed import CancelledError, KilledWorker

        fetched = _begun(future.result)
        try:
            while not wait([fetched], _POLL_SECONDS).done:
                self._go_on()
            return fetched.result()
        except SurgeonError:
            raise
        except KilledWorker as error:
            raise FleetError(
                f"{self.address}: several workers ended at the same task, the last {error.last_worker}; see its log"
            ) from None
        except (CancelledError, OSError, TimeoutError):
            raise self._gone() from None
        except Exception as error:
            raise FleetError(
                f"{self.address}: a worker failed: {type(error).__name__}: {str(error)[:200]}; see its log"
            ) from error

    def _gone(self) -> FleetError:
        return FleetError(
            f"{self.address}: the scheduler is gone; what was finished is kept, start it and run the same command again"
        )

    def sees(self, folder: Path) -> bool:
        """Whether every worker finds what lies in this folder. Raises SurgeonError where nothing can be put there."""
        try:
            make_private(folder)
            with NamedTemporaryFile(dir=folder, prefix="surgeon-") as mark:
                found: dict[str, bool] = self._attentively(lambda: self._client.run(os.path.isfile, mark.name))
        except OSError as error:
            raise SurgeonError(f"{folder}: cannot be written: {error.strerror or error}") from None
        return all(found.values())

    # --- who is there

    def _greetings(self) -> dict[str, object]:
        """Worker's name -> its Greeting, or the error that it answered with."""
        workers = self._workers()
        wanted = self.engine if self._needs_engine else None
        answers: dict[str, object] = self._attentively(lambda: self._client.run(greet, wanted, on_error="return"))
        return {str(workers.get(address, {}).get("name", address)): one for address, one in answers.items()}

    def _workers(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return found

    def _admit(self) -> None:
        """Raises FleetError where there is no worker, or one that is not like this machine or the others."""
        workers = self._patiently()
        without = [one["name"] for one in workers.values() if not one["resources"].get(RESOURCE)]
        if len(without) == len(workers):
            raise FleetError(f"{self.address}: no worker offers {RESOURCE}=1 (found {without[0]}); start one: {_START}")
        self.build = self._build_here() if self._needs_engine else ""
        for name, answer in self._greetings().items():
            self._examine(name, answer)
        self._counted, self._count = time.monotonic(), len(workers) - len(without)
        self.standing = self.title

    def _patiently(self) -> dict[str, Any]:
        """The workers, once there is one."""
        until = time.monotonic() + _CONNECT_SECONDS
        while not (workers := self._workers()):
            if self.cancelled.is_set():
                raise Cancelled("the run was cancelled")
            if time.monotonic() > until:
                raise FleetError(f"{self.address}: no worker is connected; start one: {_START}")
            time.sleep(_POLL_SECONDS)
        return workers

    def _attentively(self, work: Callable[[], Result], unwanted: Callable[[Result], object] = lambda _: None) -> Result:
        """What `work` gives, which may take seconds; unwanted: what to do with it after a cancel. Raises Cancelled."""
        future = _begun(work, unwanted)
        until = time.monotonic() + _ANSWER_TIMES * _CONNECT_SECONDS
        while not wait([future], _POLL_SECONDS).done:
            if self.cancelled.is_set() and future.cancel():
                raise Cancelled("the run was cancelled")
            if time.monotonic() > until and future.cancel():  # another kind of server may hold Dask up for ever
                raise FleetError(f"{self.address}: no Dask scheduler answers there, or a worker does not; see its log")
        return future.result()

    def _build_here(self) -> str:
        """Of this machine; '' where it has no llama.cpp, and the first worker's counts."""
        with suppress(EngineMissing):
            return build_of(engine_here(self.engine))
        return ""

    def _examine(self, name: str, answer: object) -> None:
        if not isinstance(answer, Greeting):
            raise FleetError(f"worker {name}: surgeon {__version__} does not run there ({answer}); install it there")
        if answer.surgeon != __version__:
            found, wanted = f"surgeon {answer.surgeon}", f"surgeon {__version__}"
            raise FleetError(disagreement(answer.name, found, wanted, "surgeon"))
        if answer.problem:
            raise EngineError(f"worker {answer.name}: {answer.problem}; surgeon doctor shows it there")
        self.build = self.build or answer.build
        if answer.build != self.build and self._needs_engine:
            raise FleetError(disagreement(answer.name, answer.build, self.build, "llama.cpp"))


def _begun(work: Callable[[], Result], unwanted: Callable[[Result], object] = lambda _: None) -> Future[Result]:
    """What `work` will give, in a thread of its own; unwanted: what to do with it after a cancel."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # raised again where it is waited for
            with suppress(InvalidStateError):  # nobody waits any more
                future.set_exception(error)
            return
        try:
            future.set_result(result)
        except InvalidStateError:
            unwanted(result)

    threading.Thread(target=run, name="fleet-wait", daemon=True).start()
    return future


def greetings(address: str, engine: Engine) -> dict[str, object]:
    """Worker's name -> its Greeting, or the error that it answered with; none is refused. Raises FleetError."""
    fleet = Fleet(address, engine)
    fleet._client = _connected(address)
    try:
        return fleet._greetings()
    finally:
        fleet.__exit__()


def _silence_dask() -> None:
    """What goes wrong is told in our own words, in a line. Dask gives several of its loggers a level of their own."""
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _connected(address: str) -> Any:
    """Raises FleetError where no scheduler answers, or Dask is not installed."""
    try:
        from distributed import Client
    except ImportError:
        raise FleetError(f"no Dask here: {INSTALL}, or leave --scheduler away") from None
    _silence_dask()
    try:
        connect: Any = Client
        return connect(address, timeout=_CONNECT_SECONDS, set_as_default=False, name="surgeon")
    except Exception as error:  # whatever Dask makes of what another kind of server answers, MemoryError included
        raise FleetError(
            f"{address}: no Dask scheduler answers there ({str(error)[:120]}); start one (dask scheduler), or see "
            "surgeon doctor --scheduler ADDRESS"
        ) from None
