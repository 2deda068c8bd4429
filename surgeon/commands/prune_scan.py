"""`surgeon prune-scan`: what leaving each layer out costs, measured."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.engine_options import (
    add_engine_options,
    add_scheduler_option,
    engine_of,
    fleet_of,
    positive,
    require_file,
)
from surgeon.commands.options.parser import Once, Parser
from surgeon.commands.printing.progress_line import ProgressLine
from surgeon.commands.printing.text_table import table
from surgeon.errors import Cancelled, SurgeonError, UsageError
from surgeon.json_text import json_text
from surgeon.layer_lists import read_spans
from surgeon.terminal import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from surgeon.engine.protocol import Message, PruneScanJob
    from surgeon.fleet.cluster import Fleet
    from surgeon.measure.scans.prune_choice import PruneChoice
    from surgeon.measure.scans.prune_scan import PruneScan

DESCRIPTION = """KL divergence from the whole model with one layer removed at a time, on a few chunks of TEXT; smaller:
the layer matters less. The model is loaded once and nothing is written: while it runs, a layer's output is replaced by
its input. Results are kept, so an interrupted scan resumes. With --imatrix the layers' statistics are shown beside the
damage, with how well each predicts it (Spearman's rank correlation)."""


def _parser() -> Parser:
    parser = Parser(prog="surgeon prune-scan", description=DESCRIPTION)
    add_engine_options(parser)
    parser.add_argument("-f", "--file", action=Once, required=True, metavar="TEXT")
    parser.add_argument("-c", "--ctx-size", type=positive, default=512, metavar="N", help="tokens per chunk (512)")
    parser.add_argument("-ub", "--ubatch-size", type=positive, default=512, metavar="N", help="per graph (512)")
    parser.add_argument("--chunks", type=positive, default=8, metavar="N", help="how many (8)")
    parser.add_argument("--layers", metavar="L", help="only these: 3,5-8 singly; 3+4 together (default: each layer)")
    parser.add_argument("--pairs", action="store_true", help="also each pair of neighbours")
    parser.add_argument("--count", type=positive, metavar="N", help="say which N layers to prune")
    parser.add_argument(
        "--order", choices=("single", "greedy", "pairs"), default="greedy",
        help="how they are chosen: each alone, each given those before, or neighbours two at a time (greedy)",
    )  # fmt: skip
    parser.add_argument(
        "--among", type=positive, default=0, metavar="N", help="only of the N layers that do least damage alone"
    )
    parser.add_argument(
        "--healed", action="store_true", help="measure after the matrix before each gap is refitted (surgeon heal)"
    )
    parser.add_argument(
        "--heal-chunks", type=positive, default=24, metavar="N",
        help="chunks to refit on with --healed, behind those that are measured (24)",
    )  # fmt: skip
    parser.add_argument("--imatrix", metavar="F", help="show its layer statistics beside the damage")
    add_scheduler_option(parser)
    parser.add_argument("--restart", action="store_true", help="ignore earlier results")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    statistics = _statistics(options.imatrix) if options.imatrix else {}
    scan = _scan(options)
    choice = _choice(scan, options)
    messages = scan.messages() if choice is None else choice.messages()
    try:
        with fleet_of(options.scheduler, scan.engine) as fleet:
            if fleet is not None:
                scan.elsewhere = _over(fleet)
            elif not options.among:
                _tell_estimate(scan, options)
            for _ in ProgressLine("prune-scan", "chunks" if fleet is None else "tasks").watch(messages):
                pass
    except (KeyboardInterrupt, Cancelled):
        kept = f"{len(scan.damages)} of {len(scan.job.layer_sets)} measured and kept; run it again to resume"
        print(f"surgeon: {kept}", file=sys.stderr)
        raise
    finally:
        if options.show_log and scan.run is not None:
            print(scan.run.log_text(), file=sys.stderr)
    _print(scan, options, choice, statistics)
    return 0


def _tell_estimate(scan: PruneScan, options: argparse.Namespace) -> None:
    """What it will take, of what is not measured yet."""
    from surgeon.measure.estimate import of_scan
    from surgeon.measure.speeds import Speeds
    from surgeon.model.model import load_model

    missing = [layers for layers in scan.job.layer_sets if tuple(layers) not in scan.damages]
    if not missing:
        return
    job = scan.job if options.count else replace(scan.job, layer_sets=missing)
    model = load_model(job.model)
    with model.file:
        estimate = of_scan(model, job, scan.engine, options.count or 0, options.order)
    tell([f"surgeon: {estimate.line(Speeds.of(Path(job.model), scan.engine))}"], sys.stderr)


def _over(fleet: Fleet) -> Callable[[PruneScanJob], Iterator[Message]]:
    from surgeon.fleet.scans import scanned

    return lambda job: scanned(fleet, job)


def _choice(scan: PruneScan, options: argparse.Namespace) -> PruneChoice | None:
    from surgeon.measure.scans.prune_choice import PruneChoice

    if options.count is None:
        return None
    n_layer = len(scan.job.layer_sets)
    if options.layers is not None or options.count >= n_layer:
        raise UsageError(f"--count {options.count}: less than the model's layers, and without --layers")
    return PruneChoice(scan, options.order, options.count, n_layer, options.among)


def _scan(options: argparse.Namespace) -> PruneScan:
    from surgeon.engine.protocol import PruneScanJob
    from surgeon.measure.scans.prune_scan import open_scan
    from surgeon.model.model import load_model

    model_path, text = Path(require_file(options.model)), Path(require_file(options.file))
    model = load_model(model_path)
    sets = layer_sets(options.layers, model.block_count, pairs=options.pairs and options.count is None)
    job = PruneScanJob(str(model_path), str(text), sets, options.ctx_size, options.ubatch_size, options.chunks)
    if options.healed:
        job = replace(job, n_fit=options.heal_chunks)
    return open_scan(engine_of(options), model, job, restart=options.restart)


def layer_sets(text: str | None, n_layer: int, *, pairs: bool) -> list[list[int]]:
    """The sets to measure: `3,5-8` singly, `3+4` together; neighbours too with `pairs`. Raises UsageError."""
    known = range(n_layer)
    singles = [[layer] for layer in known] if text is None else []
    try:
        for part in (text or "").split(",") if text else []:
            layers = sorted(read_spans(part.replace("+", ","), known))
            singles += [layers] if "+" in part else [[layer] for layer in layers]
    except SurgeonError as error:
        raise UsageError(f"--layers {text}: {error}") from None
    if pairs:
        alone = sorted({layers[0] for layers in singles if len(layers) == 1})
        singles += [[a, b] for a, b in pairwise(alone) if b == a + 1]
    return singles


def _print(
    scan: PruneScan, options: argparse.Namespace, choice: PruneChoice | None, statistics: dict[str, dict[int, float]]
) -> None:
    damages = [scan.damages[tuple(layers)] for layers in scan.job.layer_sets]
    if choice is not None:
        damages = sorted(scan.damages.values(), key=lambda damage: (len(damage.layers), damage.mean_kld))
    correlations = {name: _correlation(scan, values) for name, values in statistics.items()}
    if options.json:
        print(json_text({"model": options.model, "damages": [vars(damage) for damage in damages],
                          "statistics": statistics, "rank_correlation": correlations,
                          "prune": list(choice.chosen) if choice else None}))  # fmt: skip
        return
    rows = []
    for damage in damages:
        beside = [
            _cell(values.get(damage.layers[0])) if len(damage.layers) == 1 else "" for values in statistics.values()
        ]
        name = "+".join(map(str, damage.layers))
        rows.append([name, f"{damage.mean_kld:.6f}", f"{damage.ppl:.4f}", f"{100 * damage.same_top:.2f}%", *beside])
    print(table(["left out", "mean KLD", "PPL", "same top", *statistics], rows))
    if choice is not None:
        how = f"{options.order}, healed" if options.healed else options.order
        layers = ",".join(map(str, choice.chosen))
        print(f"prune these ({how}): --prune-layers {layers}  KL divergence {choice.damage:.4f}")
    for name, value in correlations.items():
        print(f"rank correlation of {name} with the damage: {value:+.2f}")


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _statistics(path: str) -> dict[str, dict[int, float]]:
    """Name -> layer -> value, of everything the file knows about layers."""
    from surgeon.imatrix.files import load_imatrix
    from surgeon.imatrix.influence import load_influence
    from surgeon.imatrix.statistics import layer_statistics, tensor_statistics

    layers = layer_statistics(tensor_statistics(load_imatrix(require_file(path))))
    found = {
        "Σ(Bias)": {row.layer: row.sum_bias for row in layers},
        "ZD": {row.layer: row.zd for row in layers},
        "CosSim": {row.layer: row.cossim for row in layers if row.cossim is not None},
    }
    influence = load_influence(path)
    if influence is not None:
        found["block influence"] = dict(enumerate(map(float, influence.block_influence)))
        found["LIM"] = dict(enumerate(map(float, influence.layer_input_modification)))
        if influence.weight_zd is not None:
            found["weights' ZD"] = dict(enumerate(map(float, influence.weight_zd)))
    return found


def _correlation(scan: PruneScan, values: dict[int, float]) -> float:
    """Spearman's ρ over the single layers that have both."""
    from surgeon.imatrix.rank_correlation import spearman

    known = [
        (value, scan.damages[(layer,)].mean_kld)
        for layer, value in values.items()
        if (layer,) in scan.damages and not math.isnan(value)
    ]
    if len(known) < 3:
        return math.nan
    return spearman([value for value, _ in known], [kld for _, kld in known])
