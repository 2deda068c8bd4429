"""`surgeon fit`: the types that lose least within a number of bytes."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.commands.options.engine_options import (
    add_llama_options,
    add_scheduler_option,
    engine_of,
    fleet_of,
    positive,
    require_file,
)
from surgeon.commands.options.parser import Once, Parser
from surgeon.errors import Cancelled, UsageError
from surgeon.json_text import json_text
from surgeon.terminal import tell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from surgeon.fit.allocation import Allocator, Fit, Limits, Mixed
    from surgeon.fit.cost_model import CostModel
    from surgeon.fit.vram import Demand
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.probing import Prober, Text
    from surgeon.measure.progress import Standing
    from surgeon.model.model import Model
    from surgeon.moments.moments import Moments
    from surgeon.plan.plan import Plan
    from surgeon.write_guard import Permit

DESCRIPTION = """Choose a type for every tensor of MODEL so that the file has at most the given size and the KL
divergence from MODEL is as small as can be. How much each kind of tensor matters is measured once on a few chunks of
TEXT, and kept; then every size is a matter of a moment. The result is a recipe for `surgeon apply`; --write makes the
file too. Where little is to be gained, llama-quantize's mix of the same bytes is measured as well, and its types are
taken when they lose less. With --held-out the outcome is measured on another text, beside the mix that fits."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="surgeon fit", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="the GGUF to fit, best F16 or BF16")
    size = parser.add_argument_group("how large").add_mutually_exclusive_group(required=True)
    size.add_argument("--size", metavar="SIZE", help="of the file: 4.2GB, 3900MiB")
    size.add_argument("--bpw", type=float, metavar="N", help="bits per weight")
    size.add_argument("--vram", metavar="SIZE", help="what a card holds, all layers offloaded: 24GiB")
    size.add_argument("--ladder", metavar="N,N,…", help="a family of bits per weight; -o and --write name folders")
    size.add_argument("--like", metavar="TYPE", help="the bytes of this TYPE of llama-quantize")
    card = parser.add_argument_group("for --vram")
    card.add_argument("--ctx", type=positive, default=4096, metavar="N", help="tokens of all sequences (4096)")
    card.add_argument("--cache-type", default="f16", metavar="T", help="of keys and values (f16)")
    card.add_argument("--parallel", type=positive, default=1, metavar="N", help="sequences at once (1)")
    card.add_argument("--vram-reserve", default="512MiB", metavar="SIZE", help="for the driver and others (512MiB)")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("-f", "--file", action=Once, required=True, metavar="TEXT", help="calibration text")
    measured.add_argument("--held-out", metavar="TEXT2", help="measure the outcome on this text")
    measured.add_argument("-c", "--ctx-size", type=positive, default=512, metavar="N", help="tokens per chunk (512)")
    measured.add_argument("--chunks", type=positive, default=4, metavar="N", help="of TEXT, per probe (4)")
    measured.add_argument("--held-out-chunks", type=positive, default=8, metavar="N", help="of TEXT2 (8)")
    add_llama_options(measured, default=0)
    add_scheduler_option(measured)
    chosen = parser.add_argument_group("what may be chosen")
    chosen.add_argument("--imatrix", metavar="F", help="importance matrix")
    chosen.add_argument("--moments", metavar="F", help="second moments: measure and write with the feedback encoder")
    chosen.add_argument("--shrink", type=float, metavar="B", help="of second moments, 0 to 1 (default: chosen)")
    chosen.add_argument("--types", metavar="T,…", help="only these types (default: all that suit the rows)")
    chosen.add_argument("--fast", action="store_true", help="no types that search a codebook (IQ1 to IQ3)")
    chosen.add_argument("--floor", action="append", default=[], metavar="PATTERN=TYPE", help="at least this type")
    chosen.add_argument("--same", action="append", default=[], metavar="KIND+KIND", help="kinds of one type per layer")
    chosen.add_argument("--tensor-type", action="append", default=[], metavar="PATTERN=TYPE", help="a rule that wins")
    chosen.add_argument("--output-tensor-type", metavar="TYPE")
    chosen.add_argument("--token-embedding-type", metavar="TYPE")
    chosen.add_argument("--recipe", metavar="R", help="rules, types and options of a recipe, which all win")
    chosen.add_argument("--allow-requantize", action="store_true")
    output = parser.add_argument_group("what is written")
    output.add_argument("-o", "--output", required=True, metavar="RECIPE", type=Path)
    output.add_argument("--write", metavar="OUT", type=Path, help="the model itself too")
    output.add_argument("--overwrite", action="store_true", help="replace what exists")
    output.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    _check(options)
    from surgeon.commands.fit_check import checked_fit
    from surgeon.commands.fit_ladder import run_ladder
    from surgeon.commands.printing.fit_report import card_line
    from surgeon.fit.allocation import Allocator, refuse_unfit
    from surgeon.fit.target import read_size
    from surgeon.fit.vram import on_host
    from surgeon.model.model import load_model

    model = load_model(options.model)
    with ExitStack() as stack:
        stack.enter_context(model.file)
        plan, imatrix, moments = _plan(options)
        refuse_unfit(plan)
        limits, prober = _limits(options), stack.enter_context(_prober(options, model, plan, imatrix, moments))
        demand = _demand(options, model) if options.vram is not None else None
        if demand is not None:
            limits = replace(limits, host=on_host(model))
        if options.held_out:  # first: a text that is too short shall be told before anything long
            _shown(_base(options, prober))
        sensitivities = _sensitivities(options, prober, limits)
        costs = _measured(sensitivities)
        allocator = Allocator(model, plan, imatrix, costs, limits, moments)
        if options.ladder is not None:
            run_ladder(options, allocator, sensitivities)
            return 0
        nbytes, option = _target(options, allocator) if demand is None else _on_card(options, allocator, demand)
        fit, mix = checked_fit(sensitivities, allocator, nbytes, option)
        _save(fit, imatrix, options)
        if options.write is not None:
            _write(fit, imatrix, options)
        held_out = _held_out(options, prober, fit, mix) if options.held_out else {}
        _print(options, fit, mix, held_out, allocator.counted(fit.resolution) / nbytes, costs)
        if demand is not None and not options.json:
            print(card_line(fit, demand, read_size(options.vram, "--vram"), limits.host or frozenset()))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot go well before anything is measured."""
    from dataclasses import replace

    from surgeon.commands.fit_ladder import read_ladder
    from surgeon.fit.target import read_size
    from surgeon.plan.file_types import parse_file_type
    from surgeon.write_guard import Kind, may_write

    require_file(options.file)
    if options.shrink is not None and not 0 <= options.shrink <= 1:
        raise UsageError(f"--shrink {options.shrink}: a number from 0 to 1")
    if options.shrink is not None and not options.moments:
        raise UsageError("--shrink is of second moments: name them with --moments")
    for text, option in ((options.size, "--size"), (options.vram, "--vram"), (options.vram_reserve, "--vram-reserve")):
        if text is not None:
            read_size(text, option)
    if options.bpw is not None and not 0 < options.bpw < float("inf"):
        raise UsageError(f"--bpw {options.bpw}: a number of bits above 0, for instance 4.25")
    if options.like is not None:
        parse_file_type(options.like)
    if options.ladder is not None:
        read_ladder(options.ladder)
        for folder in (options.output, options.write):
            if folder is not None and not folder.is_dir():
                raise UsageError(f"{folder}: no such folder; with --ladder recipes and files go into folders")
    for path in (options.output, options.write) if options.ladder is None else ():
        if path is not None and path.exists() and not options.overwrite:
            raise UsageError(f"{path}: already exists; choose another name or pass --overwrite")
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: no such folder: {path.absolute().parent}")
    if options.ladder is None:
        may_write(options.output, Kind.TEXT, _permit(options, None))
    if options.ladder is None and options.write is not None:
        may_write(options.write, Kind.MODEL, replace(_permit(options, None), outputs=(options.output,)))
    if options.held_out:
        require_file(options.held_out)
        if Path(options.held_out).read_bytes() == Path(options.file).read_bytes():
            raise UsageError(f"--held-out {options.held_out}: is the calibration text; measure on a text not used")


def _plan(options: argparse.Namespace) -> tuple[Plan, Imatrix | None, Moments | None]:
    """The user's plan, whose rules and types win, the importance matrix and the second moments."""
    from surgeon.moments.files import load_moments, load_weighing
    from surgeon.plan.plan import Plan, parse_rule, tensor_type
    from surgeon.plan.recipe import load_recipe

    recipe = load_recipe(options.recipe) if options.recipe else None
    plan = recipe.plan if recipe else Plan()
    path = options.imatrix or (recipe.imatrix if recipe else None)
    plan = replace(plan, rules=(*map(parse_rule, options.tensor_type), *plan.rules))
    if options.output_tensor_type:
        plan = replace(plan, output_tensor_type=tensor_type(options.output_tensor_type))
    if options.token_embedding_type:
        plan = replace(plan, token_embedding_type=tensor_type(options.token_embedding_type))
    if options.allow_requantize:
        plan = replace(plan, allow_requantize=True)
    moments_file = options.moments or (recipe.moments if recipe else None)
    moments = load_moments(moments_file) if moments_file else None
    imatrix = load_weighing(path) if path else None
    if options.shrink is not None:
        plan = replace(plan, shrink=options.shrink)
    return replace(plan, imatrix_file=path or plan.imatrix_file, moments_file=moments_file), imatrix, moments


def _limits(options: argparse.Namespace) -> Limits:
    from surgeon.fit.allocation import Limits
    from surgeon.fit.candidates import TypeSet
    from surgeon.plan.plan import parse_rule

    same = tuple(frozenset(part.strip() for part in text.split("+")) for text in options.same)
    return Limits(TypeSet.of(options.types, fast=options.fast), tuple(map(parse_rule, options.floor)), same)


@contextmanager
def _prober(
    options: argparse.Namespace, model: Model, plan: Plan, imatrix: Imatrix | None, moments: Moments | None
) -> Iterator[Prober]:
    """Of this machine, or over the fleet that was asked for."""
    from surgeon.measure.probing import Prober

    engine = engine_of(options)
    prober = Prober(model, imatrix, engine, moments, plan.shrink, plan.feedback_rounds)
    with fleet_of(options.scheduler, engine) as fleet:
        if fleet is None:
            yield prober
            return
        from surgeon.fleet.probes import FleetProber

        yield FleetProber.of(prober, fleet)


def _sensitivities(options: argparse.Namespace, prober: Prober, limits: Limits) -> Sensitivities:
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.probing import Text

    return Sensitivities(prober, Text(Path(options.file), options.ctx_size, options.chunks), limits.types)


def _measured(sensitivities: Sensitivities) -> CostModel:
    """The costs, after measuring what is missing."""
    try:
        if not sensitivities.load():
            if sensitivities.prober.encodes_here:  # of workers no speed is known
                _tell_estimate(sensitivities)
            _shown(sensitivities.steps())
    except (KeyboardInterrupt, Cancelled):
        print("surgeon: what was measured is kept; run it again to resume", file=sys.stderr)
        raise
    return sensitivities.costs()


def _tell_estimate(sensitivities: Sensitivities) -> None:
    """What is still to be measured, and what that takes."""
    from surgeon.folders import cache_folder
    from surgeon.measure.estimate import of_fit

    estimate = of_fit(sensitivities, cache_folder(), sensitivities.weights_left())
    tell([f"surgeon: {estimate.line(sensitivities.prober.speeds)}"], sys.stderr)


def _shown(standings: Iterable[Standing]) -> None:
    from surgeon.commands.printing.progress_line import StandingLine

    for _ in StandingLine().watch(standings):
        pass


def _target(options: argparse.Namespace, allocator: Allocator) -> tuple[int, str]:
    """Bytes of the file, and the option that says so."""
    from surgeon.fit.target import read_size
    from surgeon.plan.file_types import parse_file_type

    if options.size is not None:
        return read_size(options.size), "--size"
    if options.bpw is not None:
        return allocator.bytes_at(options.bpw), "--bpw"
    return allocator.bytes_like(parse_file_type(options.like).name), "--like"


def _demand(options: argparse.Namespace, model: Model) -> Demand:
    """What the card holds beside the weights."""
    from surgeon.fit.target import read_size
    from surgeon.fit.vram import Card, cache_type
    from surgeon.measure.memory import demand

    card = Card(
        read_size(options.vram, "--vram"), options.ctx, options.parallel, cache_type(options.cache_type),
        reserve=read_size(options.vram_reserve, "--vram-reserve"),
    )  # fmt: skip
    return demand(model, card, engine_of(options))


def _on_card(options: argparse.Namespace, allocator: Allocator, demand: Demand) -> tuple[int, str]:
    """Bytes of the weights on the card. Raises UsageError where even the smallest do not fit."""
    from surgeon.figures import memory
    from surgeon.fit.target import read_size

    room = read_size(options.vram, "--vram") - demand.total
    if room < allocator.least:
        layers = len(allocator.model.layers)
        fitting = max(0, min(layers, layers * room // max(1, allocator.least)))
        raise UsageError(
            f"--vram {options.vram}: cache {memory(demand.cache)}, compute {memory(demand.compute)} and reserve "
            f"{memory(demand.reserve)} leave {memory(max(0, room))}, the smallest weights take "
            f"{memory(allocator.least)}: about {fitting} of {layers} layers would fit; lower --ctx, or take a smaller "
            "--cache-type"
        )
    return min(room, allocator.most), "--vram"


def _permit(options: argparse.Namespace, imatrix: Imatrix | None) -> Permit:
    """What is written is none of the files that were read."""
    from surgeon.gguf.file import shards_of
    from surgeon.write_guard import Permit

    named = (options.file, options.held_out, options.recipe, options.moments, imatrix and imatrix.path)
    inputs = (*shards_of(Path(options.model)), *(Path(name) for name in named if name))
    outputs = (options.write,) if options.write is not None else ()
    return Permit(inputs, outputs, options.overwrite)


def _save(fit: Fit, imatrix: Imatrix | None, options: argparse.Namespace) -> None:
    from surgeon.commands.printing.fit_report import recipe_of
    from surgeon.plan.recipe import save_recipe

    save_recipe(recipe_of(fit, imatrix), options.output, _permit(options, imatrix))


def _write(fit: Fit, imatrix: Imatrix | None, options: argparse.Namespace) -> None:
    import threading

    from surgeon.measure.progress import Standing
    from surgeon.write.operation import Progress, WriteOptions, write

    def standings() -> Iterator[Standing]:
        settings = WriteOptions(overwrite=options.overwrite)
        for item in write(fit.resolution, imatrix, options.write, settings, threading.Event()):
            if isinstance(item, Progress):
                part = item.done_bytes / item.total_bytes if item.total_bytes else 1.0
                yield Standing("writing", 0, 1, part, item.tensor, {}, item.seconds_left)

    _shown(standings())


def _held_out_text(options: argparse.Namespace) -> Text:
    from surgeon.measure.probing import Text

    return Text(Path(options.held_out), options.ctx_size, options.held_out_chunks)


def _base(options: argparse.Namespace, prober: Prober) -> Iterator[Standing]:
    """The unchanged model on the text that the outcome is measured on."""
    from surgeon.measure.probing import Place

    yield from prober.base(_held_out_text(options), Place())


def _held_out(options: argparse.Namespace, prober: Prober, fit: Fit, mix: Mixed | None) -> dict[str, dict[str, Any]]:
    """Label -> figures of the fit and of the mix, on the text not used; with feedback also of the stock mix."""
    from surgeon.measure.probing import measured_plans
    from surgeon.resolve.resolve import resolve

    wanted = {"fit": fit.resolution} | ({mix.name: mix.resolution} if mix else {})
    if mix and prober.moments is not None:
        stock = replace(mix.resolution.plan, moments_file=None)
        wanted[f"{mix.name} stock"] = resolve(prober.model, stock, prober.imatrix)
    text = _held_out_text(options)
    found: dict[str, dict[str, Any]] = {}

    def standings() -> Iterator[Standing]:
        found.update((yield from measured_plans(prober, text, wanted)))

    _shown(standings())
    return found


def _print(
    options: argparse.Namespace,
    fit: Fit,
    mix: Mixed | None,
    held_out: dict[str, dict[str, Any]],
    used: float,
    costs: CostModel,
) -> None:
    from surgeon.commands.printing.fit_report import as_json, report

    if options.json:
        print(json_text(as_json(fit, mix, held_out, used, costs), indent=1))
        return
    print(report(fit, mix, held_out, used, costs))
    tell([f"recipe: {options.output}" + (f"; model: {options.write}" if options.write else "")])
