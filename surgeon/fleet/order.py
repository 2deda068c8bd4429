"""A worker's side: what it must agree with before it begins, and how it learns that nobody wants the result any more.

Tasks are plain functions `task(here, *arguments)`; they know nothing of Dask.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from surgeon import __version__
from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineDied
from surgeon.engine.protocol import DevicesJob, Engine, Finished
from surgeon.errors import SurgeonError
from surgeon.fleet.errors import FleetError
from surgeon.fleet.files import SharedFile
from surgeon.fleet.settings import engine_here

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Order:
    """What a task belongs to. build: of llama.cpp, '' where none runs; engine: as the command asked for it."""

    build: str
    engine: Engine
    files: tuple[SharedFile, ...] = ()
    surgeon: str = __version__


@dataclass(frozen=True)
class Here:
    """What a task finds on its machine. engine: how llama.cpp runs here; cancelled: set when the result is unwanted."""

    engine: Engine
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Greeting:
    """What a worker says of itself. problem: '' or why llama.cpp does not run there."""

    name: str
    surgeon: str
    build: str
    problem: str = ""


def perform(order: Order, task: Callable[..., Any], *arguments: Any) -> Any:
    """Run one task on this worker. Raises SurgeonError with the worker's name; an engine that dies is started again."""
    from distributed import get_worker

    worker = get_worker()
    name = f"{worker.name} on {socket.gethostname()}"
    with _unwanted(worker) as cancelled:
        _agree(order, name)
        here = Here(engine_here(order.engine), cancelled)
        try:
            try:
                return task(here, *arguments)
            except EngineDied:
                return task(here, *arguments)
        except FleetError:
            raise
        except SurgeonError as error:
            raise type(error)(f"worker {name}: {error}") from None


async def greet(engine: Engine | None, dask_worker: Any) -> Greeting:
    """What this worker has; engine: None where llama.cpp is not needed. Runs beside the worker's tasks."""
    import asyncio

    name = f"{dask_worker.name} on {socket.gethostname()}"
    if engine is None:
        return Greeting(name, __version__, "")
    try:
        build = await asyncio.to_thread(build_of, engine_here(engine))
    except SurgeonError as error:
        return Greeting(name, __version__, "", str(error))
    return Greeting(name, __version__, build)


@cache
def build_of(engine: Engine) -> str:
    """The llama.cpp that runs on this machine, without the folder it lies in. Raises EngineError, EngineMissing."""
    for message in EngineRun(engine, DevicesJob()).messages():
        if isinstance(message, Finished):
            return re.sub(r"^/.* \(llama\.cpp", "(llama.cpp", str(message.values["engine"]))
    raise FleetError("llama.cpp gave no answer; see surgeon doctor")


def disagreement(name: str, found: str, wanted: str, what: str) -> str:
    """The line that refuses a worker for its version."""
    return f"worker {name} has {found}, but this is {wanted}: install the same {what} on every machine"


def _agree(order: Order, name: str) -> None:
    """Raises FleetError where this worker, which may have come later, is not like the others."""
    if order.surgeon != __version__:
        raise FleetError(disagreement(name, f"surgeon {__version__}", f"surgeon {order.surgeon}", "surgeon"))
    if order.build:
        build = build_of(engine_here(order.engine))
        if build != order.build:
            raise FleetError(disagreement(name, build, order.build, "llama.cpp"))
    for file in order.files:
        file.require_same(name)


@contextmanager
def _unwanted(worker: Any) -> Iterator[threading.Event]:
    """An event that is set once the task was cancelled, its client is gone, or the worker loses its scheduler."""
    key = worker.get_current_task()
    cancelled, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled" or worker.status.name != "running":
                cancelled.set()
                return

    threading.Thread(target=watch, name="unwanted", daemon=True).start()
    try:
        yield cancelled
    finally:
        ended.set()
