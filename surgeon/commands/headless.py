"""Running a job without the screen: `surgeon quantize` and `surgeon apply` differ only in how they read it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import streams
from surgeon.commands.options.interruption import stopped_by_signals
from surgeon.commands.printing.write_report import (
    WriteBar,
    WriteLines,
    as_json,
    print_sizes,
    print_summary,
    tensor_line,
)
from surgeon.errors import SurgeonError
from surgeon.json_text import json_text
from surgeon.llama_quantize.options import QuantizeCommand
from surgeon.terminal import tell

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.model.model import Model
    from surgeon.moments.moments import Moments
    from surgeon.problems import Problem
    from surgeon.resolve.resolution import Resolution
    from surgeon.write.operation import Elsewhere, Summary
    from surgeon.write.output_set import Extra


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
        print_summary(job, resolution, summary)
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
    from surgeon.plan.recipe import refuse_other_imatrix

    if job.imatrix_sha256:  # of a recipe: the screen takes a file of second moments for its imatrix, too
        from surgeon.moments.files import load_weighing

        imatrix = load_weighing(job.imatrix, judged=True)
    else:
        imatrix = load_imatrix(job.imatrix, judged=True)
    refuse_other_imatrix(job.imatrix, job.imatrix_sha256)
    return imatrix


def _load_moments(job: QuantizeCommand) -> Moments | None:
    if job.moments is None:
        return None
    from surgeon.moments.files import load_moments
    from surgeon.plan.recipe import refuse_other_moments

    moments = load_moments(job.moments)
    refuse_other_moments(job.moments, moments.digest, job.moments_digest)
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
        print_sizes(resolution)
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
    from surgeon.plan.plan import WriteSettings
    from surgeon.write.operation import Summary, WriteOptions, write

    settings = WriteSettings(job.threads, job.max_buffer_bytes, job.split_max_bytes)
    options = WriteOptions.of(settings, overwrite=job.overwrite, resume=job.resume)
    show = (
        WriteBar(sys.stderr) if sys.stderr.isatty() else WriteLines(resolution, sys.stderr if job.json else sys.stdout)
    )
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
