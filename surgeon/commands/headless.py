"""Running a job without the screen: `surgeon quantize` and `surgeon apply` differ only in how they read it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from surgeon import figures, streams
from surgeon.commands.options.interruption import stopped_by_signals
from surgeon.errors import SurgeonError
from surgeon.json_text import json_text
from surgeon.llama_quantize.options import QuantizeCommand
from surgeon.terminal import redraw, tell

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.model.model import Model
    from surgeon.moments.moments import Moments
    from surgeon.problems import Problem
    from surgeon.resolve.resolution import Resolution
    from surgeon.resolve.tensor_op import TensorOp
    from surgeon.write.operation import Elsewhere, Progress, Summary
    from surgeon.write.output_set import Extra

MIB = 1 << 20


def run_job(job: QuantizeCommand) -> int:
    """Do what `job` says; returns the exit code. Raises SurgeonError for everything that is in the way."""
    from surgeon.model.kinds import refuse_imatrix
    from surgeon.model.model import load_model
    from surgeon.resolve.resolve import resolve

    model = load_model(job.input)
    with model.file:
        refuse_imatrix(model)
        if job.plan.compat and model.file.paths[0].name != job.input.name:
            raise SurgeonError(
                f"{job.input}: llama-quantize wants the first shard; leave out --compat or name that one"
            )
        imatrix, moments = _load_imatrix(job), _load_moments(job)
        if job.prune_experts:
            job = _with_chosen_experts(model, job, imatrix)
        job = _healed(job, model)
        resolution = resolve(model, job.plan, imatrix, moments)
        if job.dry_run:
            return _dry_run(job, resolution)
        # The first error is the line the program ends with; the others come before it.
        _tell_problems(resolution.problems[1:] if resolution.errors else resolution.problems)
        if resolution.errors:
            raise SurgeonError(f"{job.input}: nothing written: {resolution.errors[0].text}")
        extras = _extras(job, resolution, imatrix)
        if not job.json:
            streams.output_is_log()
        summary = _write(job, resolution, imatrix, extras)
        _report(job, resolution, summary)
    return 0


def _healed(job: QuantizeCommand, model: Model) -> QuantizeCommand:
    from surgeon.commands.healing_option import healed_plan

    plan = healed_plan(
        job.plan, model, job.heal, per_column=job.heal_tokens, may_run=not job.dry_run, threads=job.threads
    )
    return replace(job, plan=plan)


def _load_imatrix(job: QuantizeCommand) -> Imatrix | None:
    if job.imatrix is None:
        return None
    from surgeon.imatrix.files import load_imatrix
    from surgeon.plan.recipe import file_sha256

    imatrix = load_imatrix(job.imatrix, judged=True)
    if job.imatrix_sha256 and file_sha256(job.imatrix) != job.imatrix_sha256:
        raise SurgeonError(f"{job.imatrix}: is not the imatrix the recipe was made with (its sha256 differs)")
    return imatrix


def _load_moments(job: QuantizeCommand) -> Moments | None:
    if job.moments is None:
        return None
    from surgeon.moments.files import load_moments

    moments = load_moments(job.moments)
    if job.moments_digest and moments.digest != job.moments_digest:
        raise SurgeonError(f"{job.moments}: not the second moments the recipe was made with (their digest differs)")
    return moments


def _with_chosen_experts(model: Model, job: QuantizeCommand, imatrix: Imatrix | None) -> QuantizeCommand:
    """The job with the experts that `--prune-experts` asks for marked in its plan."""
    from surgeon.imatrix.influence import load_influence
    from surgeon.plan.plan import with_pruned_experts
    from surgeon.resolve.expert_choice import choose_experts

    influence = load_influence(imatrix.path, channels=False) if imatrix is not None else None
    sums = influence.experts if influence is not None else None
    choice = choose_experts(model, job.prune_experts, job.experts_by, imatrix, sums, job.plan.pruned)
    _tell_problems(choice.notes)
    return replace(job, plan=with_pruned_experts(job.plan, choice.sets))


def _dry_run(job: QuantizeCommand, resolution: Resolution) -> int:
    """Types and sizes only. A missing imatrix is only warned of, as llama-quantize does; other errors count."""
    _tell_problems(resolution.problems)
    if job.json:
        print(json_text(as_json(job, resolution), indent=1))
    else:
        tell(tensor_line(op, number, len(resolution.kept)) for number, op in enumerate(resolution.kept, 1))
        _print_sizes(resolution)
        if resolution.needs_imatrix:
            print("WARNING: dry run completed, but writing this will require an imatrix!")
    fatal = len(resolution.errors) - bool(resolution.needs_imatrix)
    return 1 if fatal > 0 else 0


def _tell_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        tell([f"surgeon: {problem.severity}: {problem.text}"], sys.stderr)


def _extras(job: QuantizeCommand, resolution: Resolution, imatrix: Imatrix | None) -> list[Extra]:
    """What gets its name together with the model: imatrix and moments that are to be saved with the new layers."""
    extras = []
    if job.save_imatrix is not None:
        if imatrix is None:
            raise SurgeonError("--save-imatrix: no imatrix to save; give --imatrix")
        extras.append(_imatrix_extra(job.save_imatrix, resolution, imatrix))
    if job.save_moments is not None:
        if resolution.moments is None:
            raise SurgeonError("--save-moments: there are no second moments to save; give --moments")
        extras.append(_moments_extra(job.save_moments, resolution, resolution.moments))
    return extras


def _imatrix_extra(path: Path, resolution: Resolution, imatrix: Imatrix) -> Extra:
    from surgeon.imatrix.files import dat_bytes, gguf_bytes
    from surgeon.imatrix.influence import file_bytes, load_influence
    from surgeon.write.output_set import Extra
    from surgeon.write_guard import Kind

    renumbered = imatrix.with_matrices(resolution.kept_experts).renumbered(resolution.kept_layers)
    if path.suffix == ".dat":
        return Extra.of(path, Kind.IMATRIX, dat_bytes(renumbered))
    influence = load_influence(imatrix.path, channels=False)
    if influence is None:
        return Extra.of(path, Kind.IMATRIX, gguf_bytes(renumbered.raw_sums()))
    gone = {layer: frozenset(experts) for layer, experts in resolution.plan.pruned_experts}
    kept = sorted(resolution.kept_layers, key=resolution.kept_layers.__getitem__)
    return Extra.of(path, Kind.IMATRIX, file_bytes(renumbered.raw_sums(), influence.pruned(kept, gone)))


def _moments_extra(path: Path, resolution: Resolution, moments: Moments) -> Extra:
    from surgeon.moments.files import MomentsFile
    from surgeon.moments.sources import Renumbered
    from surgeon.write.output_set import Extra
    from surgeon.write_guard import Kind

    layers, experts = resolution.kept_layers, resolution.kept_experts
    planned = MomentsFile(path, moments.head, [Renumbered(moments, layers, experts)])
    identity = repr((moments.digest, sorted(layers.items()), sorted(experts.items()))).encode()
    return Extra(path, Kind.MOMENTS, planned.nbytes, identity, planned.pieces)


def _write(job: QuantizeCommand, resolution: Resolution, imatrix: Imatrix | None, extras: Sequence[Extra]) -> Summary:
    from surgeon.write.operation import Summary, WriteOptions, write

    options = WriteOptions(
        threads=job.threads, overwrite=job.overwrite, resume=job.resume, split_max_bytes=job.split_max_bytes
    )
    if job.max_buffer_bytes:
        options = replace(options, max_buffer_bytes=job.max_buffer_bytes)
    show = _Bar(sys.stderr) if sys.stderr.isatty() else _Lines(resolution, sys.stderr if job.json else sys.stdout)
    with stopped_by_signals() as cancelled, _fleet(job, resolution, imatrix, cancelled) as elsewhere:
        for step in write(resolution, imatrix, job.output, options, cancelled, extras, elsewhere):
            if isinstance(step, Summary):
                show.finish()
                if step.left_over:
                    print(f"surgeon: note: the output is complete; {step.left_over}", file=sys.stderr)
                return step
            show.update(step)
    raise AssertionError("write ends with a Summary")


@contextmanager
def _fleet(
    job: QuantizeCommand, resolution: Resolution, imatrix: Imatrix | None, cancelled: threading.Event
) -> Iterator[Elsewhere | None]:
    """The workers that `--scheduler` or the config file names; None: threads of this process. Raises FleetError."""
    from surgeon.commands.options.engine_options import fleet_of
    from surgeon.engine.protocol import Engine

    with fleet_of(job.scheduler, Engine(threads=job.threads), cancelled, needs_engine=False) as fleet:
        if fleet is None:
            yield None
            return
        from surgeon.fleet.writing import workers_of

        yield partial(workers_of, fleet, resolution, imatrix)


class _Lines:
    """One line per finished tensor, for logs; quiet with --json."""

    def __init__(self, resolution: Resolution, stream: TextIO) -> None:
        self.ops = resolution.kept
        self.stream = stream
        self.shown = 0

    def update(self, progress: Progress) -> None:
        if self.stream is sys.stdout:
            for number in range(self.shown, progress.index):
                tell([tensor_line(self.ops[number], number + 1, len(self.ops))], self.stream)
                self.stream.flush()
            self.shown = max(self.shown, progress.index)

    def finish(self) -> None:
        if self.stream is sys.stdout:
            for number in range(self.shown, len(self.ops)):
                tell([tensor_line(self.ops[number], number + 1, len(self.ops))], self.stream)


class _Bar:
    """One line on a terminal, redrawn."""

    WIDTH = 24

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def update(self, progress: Progress) -> None:
        import shutil

        share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
        filled = round(share * self.WIDTH)
        left = progress.seconds_left
        text = (
            f"{'#' * filled}{'.' * (self.WIDTH - filled)} {share:4.0%} {progress.bytes_per_second / 1e6:6.0f} MB/s "
            f"{figures.duration(left) if left is not None else '--:--'} {progress.stage} "
            f"{progress.index}/{progress.count} {progress.tensor}"
        )
        redraw(self.stream, text[: shutil.get_terminal_size().columns - 1])

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


def _print_sizes(resolution: Resolution) -> None:
    """The closing lines that llama-quantize's users look for."""
    before, after = resolution.source_bytes, resolution.data_bytes
    print(f"model size  = {before / MIB:8.2f} MiB ({resolution.bits_per_weight(before):.2f} BPW)")
    print(f"quant size  = {after / MIB:8.2f} MiB ({resolution.bpw:.2f} BPW)")
    if resolution.unseen_experts:
        print(f"WARNING: {resolution.unseen_experts} expert(s) had no data in the imatrix")
    if resolution.fallbacks:
        total = len(resolution.model.tensors)
        print(f"WARNING: {resolution.fallbacks} of {total} tensor(s) required fallback quantization")


def _report(job: QuantizeCommand, resolution: Resolution, summary: Summary) -> None:
    if job.json:
        print(json_text(as_json(job, resolution, summary), indent=1))
        return
    _print_sizes(resolution)
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
