"""What the child process runs: reads one job from stdin, answers on stdout, logs on stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, cast

from surgeon.engine.errors import EngineError, EngineMissing
from surgeon.engine.frames import read_message, write_message
from surgeon.engine.protocol import (
    Beat,
    BenchJob,
    CountJob,
    DevicesJob,
    DivergenceJob,
    EmbeddingJob,
    Engine,
    ExpertScanJob,
    Failed,
    Finished,
    HealJob,
    ImatrixJob,
    Job,
    Loaded,
    MemoryJob,
    Message,
    PerplexityJob,
    ProbeJob,
    PruneScanJob,
    Request,
    TaskJob,
)
from surgeon.machine import available_cores

if TYPE_CHECKING:
    from surgeon.engine.child.llama.model import LlamaModel


_BEAT_SECONDS = 5.0


def main() -> int:
    """Run the job that arrives on stdin; exit code 0 also where the job fails, for the answer says so."""
    answers = _private_stdout()
    requests = sys.stdin.buffer
    engine, job = read_message(requests), read_message(requests)
    if not isinstance(engine, Engine) or job is None:
        return 2
    later: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests, later), daemon=True).start()
    turn = threading.Lock()

    def tell(message: Message) -> None:
        with turn:
            write_message(answers, message)

    threading.Thread(target=_beat, args=(answers, turn), daemon=True).start()
    try:
        for message in _run(engine, cast(Request, job), iter(later.get, None), tell):
            tell(message)
    except Exception as error:  # whatever it is, the parent gets it as a line; the rest is in the log
        traceback.print_exc()
        tell(Failed(_one_line(error), isinstance(error, EngineMissing), _is_full(error)))
    turn.acquire()  # no beat may be half written when this process ends
    # llama.cpp's own clean-up has crashed on exit in the past; nothing is left to save.
    os._exit(0)


def _private_stdout() -> IO[bytes]:
    """The answers' stream; whatever else writes on stdout (ggml does) goes to the log."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def _read_requests(requests: IO[bytes], later: SimpleQueue[Message]) -> None:
    """What the parent asks while the job runs; when the parent is gone, so is the child."""
    try:
        while (message := read_message(requests)) is not None:
            later.put(message)
    finally:
        os._exit(3)


def _beat(answers: IO[bytes], turn: threading.Lock) -> None:
    """Say every few seconds that this process lives; at the end of the other side there is nobody to tell."""
    with contextlib.suppress(OSError, ValueError):
        while True:
            time.sleep(_BEAT_SECONDS)
            with turn:
                write_message(answers, Beat())


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for this model, context or vocabulary: lower -c or -b"
    text = " ".join(str(error).split())
    if isinstance(error, EngineError):
        return text
    if isinstance(error, OSError):
        names = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{names or 'the engine'}: {error.strerror or text}"
    return f"the engine's process failed: {type(error).__name__}: {text[:200]}"


def _run(
    engine: Engine, job: Request, requests: Iterator[Message], tell: Callable[[Message], None]
) -> Iterator[Message]:
    """tell: sends at once what cannot wait for the end of a decode."""
    from surgeon.engine.child.llama import toy
    from surgeon.engine.child.llama.binding import Binding
    from surgeon.engine.child.llama.model import LlamaModel
    from surgeon.engine.libraries import find_libraries

    binding = Binding(find_libraries(engine.library))
    if isinstance(job, DevicesJob):
        yield Finished({"engine": binding.label, "devices": binding.device_memory()})
        return
    toy.check(binding, engine.n_gpu_layers)
    model = LlamaModel(binding, job.model, engine.n_gpu_layers, no_alloc=isinstance(job, MemoryJob | CountJob))
    threads = engine.threads if engine.threads > 0 else available_cores()
    yield Loaded(
        binding.label, binding.devices(), model.description, model.n_params, model.nbytes, model.n_vocab,
        model.n_layer, model.n_ctx_train, threads,
    )  # fmt: skip
    yield from _answers(model, job, threads, requests, tell)
    model.close()


def _answers(
    model: LlamaModel, job: Job, threads: int, requests: Iterator[Message], tell: Callable[[Message], None]
) -> Iterator[Message]:
    """Each job's module is imported only when it is asked for."""
    match job:
        case CountJob():
            from surgeon.engine.child.evaluation import chunk_counts

            return chunk_counts.measure(model, job)
        case ImatrixJob():
            from surgeon.engine.child.collection import imatrix_collection

            return imatrix_collection.collect(model, job, threads, tell)
        case PerplexityJob():
            from surgeon.engine.child.evaluation import perplexity

            return perplexity.measure(model, job, threads)
        case DivergenceJob():
            from surgeon.engine.child.evaluation import kl_divergence

            return kl_divergence.measure(model, job, threads)
        case TaskJob():
            from surgeon.engine.child.evaluation import tasks

            return tasks.measure(model, job, threads)
        case EmbeddingJob():
            from surgeon.engine.child.evaluation import embeddings

            return embeddings.measure(model, job, threads)
        case BenchJob():
            from surgeon.engine.child.evaluation import bench

            return bench.measure(model, job, threads)
        case PruneScanJob():
            from surgeon.engine.child.scans import prune_scan

            return prune_scan.measure(model, job, threads, requests)
        case ProbeJob():
            from surgeon.engine.child.evaluation import probes

            return probes.measure(model, job, threads, requests)
        case MemoryJob():
            from surgeon.engine.child.llama import memory

            return memory.measure(model, job, threads)
        case ExpertScanJob():
            from surgeon.engine.child.scans import expert_scan

            return expert_scan.measure(model, job, threads, requests)
        case HealJob():
            from surgeon.engine.child.healing import job as healing

            return healing.measure(model, job, threads)


if __name__ == "__main__":
    sys.exit(main())
