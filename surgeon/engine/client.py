"""The parent's side: start the child, send a job, yield what it answers, kill it when asked."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from surgeon.engine.errors import EngineDied, EngineError, EngineMissing
from surgeon.engine.frames import ProtocolError, read_message, write_message
from surgeon.engine.protocol import Beat, Engine, Failed, Finished, Message, PerplexityJob, Request
from surgeon.errors import Cancelled, DiskFull, SurgeonError
from surgeon.folders import log_folder
from surgeon.gguf.file import shards_of
from surgeon.whole_files import written_whole
from surgeon.write_guard import Kind, Permit

_POLL_SECONDS = 0.1  # how long a cancel may go unseen
SILENCE_SECONDS = 120.0  # the child beats every few seconds; this long nothing comes only from one that hangs
LEAVING_SECONDS = 10.0
_KEPT_LOGS = 20
_TELLING = ("GGML_ASSERT", "GGML_ABORT", "error", "failed", "terminate called", "out of memory", "Error")


class EngineRun:
    """One job in one child process. Iterate `messages()`; `log` is what llama.cpp and the child wrote on stderr."""

    def __init__(self, engine: Engine, job: Request, cancelled: threading.Event | None = None) -> None:
        self.engine, self.job = engine, job
        self.cancelled = cancelled or threading.Event()
        self.log = _new_log()
        self.process: subprocess.Popen[bytes] | None = None

    def messages(self) -> Iterator[Message]:
        """All answers up to Finished, included.

        Raises EngineError (one line) where the job fails or the child dies, EngineMissing without a usable llama.cpp,
        Cancelled once `cancelled` is set. However the iteration ends, the child is gone afterwards.
        """
        with self:
            yield from self.until(Finished)

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = _start(log)
        self._answers = _reader(self.process)
        _send(self.process, self.engine, self.job)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        _end(self.process)

    def until(self, kind: type[Message]) -> Iterator[Message]:
        """The answers up to the next one of this kind, included. Raises as `messages`."""
        assert self.process is not None
        while True:
            message = self._next(self._answers)
            if message is None:
                raise self._death(self.process)
            if isinstance(message, Failed):
                raise _failure(message)
            yield message
            if isinstance(message, kind):
                return

    def send(self, *requests: Message) -> None:
        """Send requests to a job that takes them. A child that is gone shows at the next answer."""
        assert self.process is not None
        _send(self.process, *requests)

    def log_text(self) -> str:
        """What was written on the log so far."""
        return self.log.read_text(errors="replace")

    def _next(self, answers: queue.SimpleQueue[Message | None]) -> Message | None:
        silent = 0  # polls, not seconds of the clock: a machine that slept is not a child that hangs
        while silent < SILENCE_SECONDS / _POLL_SECONDS:
            if self.cancelled.is_set():
                raise Cancelled("the run was cancelled")
            try:
                message = answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                silent += 1
                continue
            if not isinstance(message, Beat):
                return message
            silent = 0
        raise EngineDied(
            f"the engine's process gave no sign of life for {SILENCE_SECONDS:g} s and was ended; try again with less "
            f"(-c, -b), or another llama.cpp, see surgeon doctor (log: {self.log})"
        )

    def _death(self, process: subprocess.Popen[bytes]) -> EngineDied:
        try:
            code = process.wait(timeout=LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            return EngineDied(f"the engine's process stopped answering without ending (log: {self.log})")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        reason = last_telling_line(self.log_text())
        why = f": {reason}" if reason else ""
        return EngineDied(f"llama.cpp ended {how}{why}; surgeon doctor shows how it is set up (log: {self.log})")


def _failure(message: Failed) -> SurgeonError:
    kind = DiskFull if message.full else EngineMissing if message.missing else EngineError
    return kind(message.message)


def last_telling_line(log: str) -> str:
    """The last line of a log that looks like the reason of an end, cut to 200 characters; empty where none does."""
    lines = [line.strip() for line in log.splitlines() if any(word in line for word in _TELLING)]
    return lines[-1][:200] if lines else ""


def _new_log() -> Path:
    folder = log_folder()
    old = sorted(folder.glob("engine-*.log"), key=lambda path: path.name)
    for path in old[: max(0, len(old) - _KEPT_LOGS + 1)]:
        with contextlib.suppress(OSError):  # another surgeon removed it first
            path.unlink()
    try:
        handle, name = tempfile.mkstemp(prefix=time.strftime("engine-%Y%m%d-%H%M%S-"), suffix=".log", dir=folder)
        os.close(handle)
    except OSError as error:
        raise EngineError(f"{folder}: the log cannot be written: {error.strerror}") from error
    return Path(name)


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    if "OMP_WAIT_POLICY" not in environment:
        # Threads that spin long at every barrier make a busy machine four times slower, and an idle one hardly faster.
        environment.setdefault("GOMP_SPINCOUNT", "2000")
    # The child's own threads share its matrix products; BLAS threads besides them would only wait for each other.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return subprocess.Popen(
        # -P: a file named like a module in the current directory must not take its place.
        [sys.executable, "-P", "-m", "surgeon.engine.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the parent, which saves what there is and ends the child
    )


def _send(process: subprocess.Popen[bytes], *messages: Message) -> None:
    assert process.stdin is not None
    # A child that is already gone is reported by its exit code, a moment later.
    with contextlib.suppress(BrokenPipeError):
        for message in messages:
            write_message(process.stdin, message)


def _reader(process: subprocess.Popen[bytes]) -> queue.SimpleQueue[Message | None]:
    """A thread that puts every answer into the queue, and None at the end of the stream."""
    answers: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        try:
            while (message := read_message(stream)) is not None:
                answers.put(message)
        except (ProtocolError, ValueError, OSError, MemoryError) as error:
            answers.put(Failed(f"the engine's child process sent something unreadable ({error})"))
        answers.put(None)

    threading.Thread(target=read, name="surgeon-engine-reader", daemon=True).start()
    return answers


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # what was never read
            process.stdin.close()


def perplexity(run: EngineRun, *, overwrite: bool = False) -> Iterator[Message]:
    """The messages of a PerplexityJob; its `save_base` appears whole or not at all.

    overwrite: an older base may be replaced. Raises SurgeonError before anything runs where the path must not be
    written, for instance because it is the model or the text.
    """
    job = run.job
    if not isinstance(job, PerplexityJob) or job.save_base is None:
        yield from run.messages()
        return
    permit = Permit((*shards_of(Path(job.model)), Path(job.text)), replace=overwrite)
    with written_whole(Path(job.save_base), Kind.LOGITS, permit) as temporary:
        run.job = replace(job, save_base=str(temporary))
        try:
            yield from run.messages()
        except DiskFull as error:  # the child knows the temporary name only
            raise DiskFull(f"{job.save_base}: cannot be written: {error}; choose another place") from None
