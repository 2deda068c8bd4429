"""What a plan converts, as its file would hold it, in memory: for measuring a plan without writing it."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np

from surgeon.imatrix.imatrix import Imatrix
from surgeon.machine import available_cores
from surgeon.resolve.resolution import Resolution
from surgeon.write.feedback import SAMPLE_ROWS, Feedback, Key
from surgeon.write.output_file import OutputFile
from surgeon.write.slab_workers import run_all
from surgeon.write.slabs import Bytes, Floats, TensorJob


class _InMemory(OutputFile):
    """An output that never reaches the disk: `data` is uint8[bytes of one tensor]."""

    def __init__(self, path: Path, nbytes: int) -> None:
        super().__init__(path, nbytes)
        self.data: Bytes = np.empty(nbytes, np.uint8)

    def pwrite(self, data: memoryview | bytes, offset: int) -> None:
        self.data[offset : offset + len(data)] = np.frombuffer(data, np.uint8)


def converted_tensors(
    resolution: Resolution, imatrix: Imatrix | None, cancelled: threading.Event
) -> dict[str, tuple[str, Bytes]]:
    """Tensor -> (type, uint8[bytes]) of every tensor that the plan converts, byte for byte as `write` writes it.

    Raises SurgeonError naming the tensor, Cancelled.
    """
    if imatrix is None and resolution.moments is not None:
        imatrix = resolution.moments.as_imatrix
    feedback = None
    if resolution.moments is not None and resolution.with_feedback:
        feedback = Feedback(resolution.moments, resolution.plan, cancelled)
    made, jobs = _jobs(resolution, imatrix, feedback)
    run_all(jobs, available_cores(), cancelled, partial(_sample, jobs))
    return made


def _sample(jobs: list[TensorJob], key: Key) -> tuple[Floats, str]:
    """Of the first tensor with this input, as a write chooses it."""
    job = next(job for job in jobs if job.feedback_input == key[0])
    return job.sample(key[1], SAMPLE_ROWS), job.op.to_type


def _jobs(
    resolution: Resolution, imatrix: Imatrix | None, feedback: Feedback | None
) -> tuple[dict[str, tuple[str, Bytes]], list[TensorJob]]:
    """Where the tensors go, and the work, in output order."""
    made: dict[str, tuple[str, Bytes]] = {}
    jobs = []
    for number, op in enumerate(resolution.kept):
        if op.action != "convert":
            continue
        output = _InMemory(resolution.model.file.path, op.nbytes)
        made[op.source] = op.to_type, output.data
        jobs.append(TensorJob.of(resolution, number, imatrix, output, 0, feedback))
    return made, jobs
