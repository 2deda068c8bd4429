"""One write at a time: its state, and the thread that runs it. The screen that shows it may come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from surgeon.errors import Cancelled, SurgeonError
from surgeon.imatrix.imatrix import Imatrix
from surgeon.measure.speeds import Speeds, encoding
from surgeon.resolve.resolve import Resolution
from surgeon.tui.jobs.messages import Reported, WriteFailed, Written
from surgeon.tui.jobs.workers import Workers
from surgeon.write.operation import Progress, Stop, Summary, WriteOptions, write
from surgeon.write.output_set import resume_log_of

if TYPE_CHECKING:
    from surgeon.fleet.cluster import Fleet


@dataclass
class WriteJob:
    resolution: Resolution
    imatrix: Imatrix | None
    out: Path
    options: WriteOptions
    workers: Workers = field(default_factory=Workers)
    speeds: Speeds = field(default_factory=Speeds)
    cancelled: Stop = field(default_factory=Stop)
    progress: Progress | None = None
    summary: Summary | None = None
    failure: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def doing(self) -> str:
        """A sentence's beginning, for the question before quitting."""
        return f"{self.out.name} is being written"

    @property
    def keeps(self) -> str:
        """What stopping it leaves, for the question before."""
        return "Finished tensors are kept: the same write resumes them."

    @property
    def running(self) -> bool:
        return self.summary is None and not self.failure

    @property
    def resume_log(self) -> Path:
        """What lies beside the output as long as the write can be resumed."""
        return resume_log_of(self.resolution.parts(self.out, self.options.split_max_bytes)[0].path)

    def stop(self, *, keep: bool = False) -> None:
        """Cancel it; keep: what is finished stays, for a later session to go on with."""
        self.cancelled.keep = keep or self.cancelled.keep
        self.cancelled.set()

    def run(self, tell: Callable[[Message], object]) -> None:
        """In a thread. The generator reports about ten times a second; errors become a line, never a traceback."""
        try:
            with self.workers.joined(self.cancelled, needs_engine=False) as fleet:
                speed = 0.0
                for item in self._items(fleet):
                    if isinstance(item, Summary):
                        if speed and fleet is None:
                            self.speeds.keep(encoding(self.resolution), item.source_bytes / speed)
                        tell(Written(item))
                    else:
                        speed = item.bytes_per_second if item.stage == "writing" else speed
                        tell(Reported(item))
        except Cancelled as error:
            tell(WriteFailed(_on_screen(error), True))
        except SurgeonError as error:
            tell(WriteFailed(_on_screen(error), False))
        except Exception as error:  # a defect must not take the session down: the plan is still on the table
            tell(WriteFailed(f"{self.out}: {type(error).__name__}: {error}", False))

    def _items(self, fleet: Fleet | None) -> Iterator[Progress | Summary]:
        elsewhere = None
        if fleet is not None:
            from surgeon.fleet.writing import workers_of

            elsewhere = partial(workers_of, fleet, self.resolution, self.imatrix)
        options = self.options
        return write(self.resolution, self.imatrix, self.out, options, self.cancelled, elsewhere=elsewhere)


def _on_screen(error: SurgeonError) -> str:
    """The error with what to press instead of the option to give."""
    return str(error).replace("continue with --resume", "w resumes it")


def default_output(resolution: Resolution) -> Path:
    """A name beside the input that says what was done: `model-pruned-7-healed-Q4_K_M-feedback.gguf`."""
    source = resolution.model.file.path
    stem = source.stem
    for name in ("F16", "BF16", "F32", "f16", "bf16", "f32"):
        stem = stem.removesuffix(f"-{name}").removesuffix(f".{name}")
    plan = resolution.plan
    parts = [stem]
    if plan.pruned:
        parts.append("pruned-" + "-".join(map(str, sorted(plan.pruned))) if len(plan.pruned) <= 4 else "pruned")
    if plan.pruned_experts:
        parts.append(f"pruned-{len(plan.pruned_experts[0][1])}-experts")  # every layer loses as many
    if plan.healing is not None:
        parts.append("healed")
    parts.append(plan.file_type if plan.file_type != "COPY" else "copy")
    if resolution.with_feedback:
        parts.append("feedback")
    if "-".join(parts) == source.stem:  # F16 of an F16 file: the input is never written
        parts.append("rewritten")
    return source.with_name("-".join(parts) + ".gguf")
