"""What a write from the command line prints: progress, a line for each tensor, sizes, or all of it as JSON."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from surgeon import figures
from surgeon.json_text import json_text
from surgeon.terminal import redraw, tell

if TYPE_CHECKING:
    from surgeon.llama_quantize.options import QuantizeCommand
    from surgeon.resolve.resolution import Resolution
    from surgeon.resolve.tensor_op import TensorOp
    from surgeon.write.operation import Progress, Summary

MIB = 1 << 20


class WriteLines:
    """One line per finished tensor, for logs; quiet with --json."""

    def __init__(self, resolution: Resolution, stream: TextIO) -> None:
        self.ops = resolution.kept
        self.stream = stream
        self.shown = 0

    def update(self, progress: Progress) -> None:
        self._show(progress.index)

    def finish(self) -> None:
        self._show(len(self.ops))

    def _show(self, finished: int) -> None:
        if self.stream is not sys.stdout:
            return
        for number in range(self.shown, finished):
            tell([tensor_line(self.ops[number], number + 1, len(self.ops))], self.stream)
            self.stream.flush()
        self.shown = max(self.shown, finished)


class WriteBar:
    """One line on a terminal, redrawn."""

    WIDTH = 24

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def update(self, progress: Progress) -> None:
        share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
        filled = round(share * self.WIDTH)
        left = progress.seconds_left
        text = (
            f"{'#' * filled}{'.' * (self.WIDTH - filled)} {share:4.0%} {progress.bytes_per_second / 1e6:6.0f} MB/s "
            f"{figures.duration(left) if left is not None else '--:--'} {progress.stage} "
            f"{progress.index}/{progress.count} {progress.tensor}"
        )
        redraw(self.stream, text)

    def finish(self) -> None:
        redraw(self.stream, "")


def ggml_name(type_name: str) -> str:
    """As ggml prints it: lower case but for the K of k-quants (`q4_K`)."""
    lower = type_name.lower()
    return f"{lower[:-1]}K" if lower.endswith("_k") else lower


def tensor_line(op: TensorOp, number: int, count: int) -> str:
    """llama-quantize's line for a tensor, and the reason behind it."""
    width = len(str(count))
    ne = ", ".join(str(n) for n in (*op.ne, 1, 1, 1)[: max(4, len(op.ne))])
    line = f"[{number:>{width}}/{count}] {op.name:<36} - [{ne}], type = {ggml_name(op.from_type):>7}, "
    line += f"size = {op.tensor.nbytes / MIB:9.3f} MiB"
    if op.action == "convert":
        line += f" -> {op.nbytes / MIB:9.3f} MiB ({ggml_name(op.to_type)})"
    return f"{line}  {op.reason}"


def print_sizes(resolution: Resolution) -> None:
    """The closing lines that llama-quantize's users look for."""
    before, after = resolution.source_bytes, resolution.data_bytes
    print(f"model size  = {before / MIB:8.2f} MiB ({resolution.bits_per_weight(before):.2f} BPW)")
    print(f"quant size  = {after / MIB:8.2f} MiB ({resolution.bpw:.2f} BPW)")
    if resolution.unseen_experts:
        print(f"WARNING: {resolution.unseen_experts} expert(s) had no data in the imatrix")
    if resolution.fallbacks:
        total = len(resolution.model.tensors)
        print(f"WARNING: {resolution.fallbacks} of {total} tensor(s) required fallback quantization")


def print_summary(job: QuantizeCommand, resolution: Resolution, summary: Summary) -> None:
    if job.json:
        print(json_text(as_json(job, resolution, summary), indent=1))
        return
    print_sizes(resolution)
    names = str(summary.paths[0]) + (f" and {len(summary.paths) - 1} more" if len(summary.paths) > 1 else "")
    speed = summary.source_bytes / 1e6 / summary.seconds if summary.seconds else 0.0
    resumed = f", {summary.resumed} tensors already finished" if summary.resumed else ""
    resumed += f", {summary.damaged} found damaged and written again" if summary.damaged else ""
    tell([f"{names}: {summary.nbytes} bytes in {summary.seconds:.1f} s ({speed:.0f} MB/s{resumed})"])


def as_json(job: QuantizeCommand, resolution: Resolution, summary: Summary | None = None) -> dict[str, Any]:
    """The object that `--json` prints.

    tensors: those written, in output order, sizes without padding; pruned: names in the input; total_bytes: of the
    file or files; bpw: bits per weight over the parameters written.
    """
    return {
        "input": str(job.input),
        "outputs": [str(path) for path in summary.paths] if summary else [],
        "type": job.plan.file_type,
        "dry_run": job.dry_run,
        "tensors": [
            {
                "source": op.source,
                "name": op.name,
                "from": op.from_type,
                "to": op.to_type,
                "bytes": op.nbytes,
                "reason": op.reason,
                "imatrix": op.imatrix_name is not None,
                "encoder": "stock" if op.feedback is None else "feedback",
            }
            for op in resolution.kept
        ],
        "experts_without_data": resolution.unseen_experts,
        "pruned": [op.source for op in resolution.ops if op.action == "drop"],
        "data_bytes": resolution.data_bytes,
        "total_bytes": summary.nbytes if summary else _planned_bytes(job, resolution),
        "bpw": resolution.bpw,
        "problems": [asdict(problem) for problem in resolution.problems],
    }


def _planned_bytes(job: QuantizeCommand, resolution: Resolution) -> int:
    if not job.split_max_bytes:
        return resolution.total_bytes
    from surgeon.write.layouts import lay_out

    return sum(layout.header.total_bytes for layout in lay_out(resolution, job.output, job.split_max_bytes))
