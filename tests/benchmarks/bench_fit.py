"""`surgeon fit` beside llama-quantize's mixes, random and error-only allocations, at equal bytes, on held-out texts.

    python tests/benchmarks/bench_fit.py MODEL --imatrix F -f CALIBRATION TEXT [TEXT ...] [--mixes Q3_K_M,Q4_K_M] [-t N]

Every plan is measured by a probe (the model is loaded once per text). Prints the KL divergence of each plan with its
standard error over tokens, the geometric mean of fit over mix, and the rank correlation of predicted and measured.
Sensitivities measured before are used; with --seconds the times of everything are printed too.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

from surgeon.engine.protocol import Engine
from surgeon.fit.allocation import Allocator, Fit, Limits, Unit
from surgeon.fit.candidates import TypeSet
from surgeon.fit.cost_model import CostModel
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.rank_correlation import spearman
from surgeon.measure.probing import Prober, Text, measured_plans
from surgeon.measure.progress import Standing
from surgeon.measure.sensitivities import Sensitivities
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolution import Resolution

MIXES = "Q2_K,Q3_K_M,IQ3_M,IQ4_XS,Q4_K_M,Q5_K_M"


class ErrorsAlone(CostModel):
    """The relative errors as costs, as if every tensor mattered alike."""

    def cost(self, name: str, type_name: str) -> float | None:
        return self.error(name, type_name)


def random_plan(allocator: Allocator, nbytes: int, seed: int) -> Fit:
    """Types drawn blindly, then steps up and down, drawn blindly too, until the bytes are used up."""
    draw = random.Random(seed)
    ladders = [sorted(unit.sizes, key=lambda kind, unit=unit: unit.sizes[kind]) for unit in allocator.units]
    places = [draw.randrange(len(ladder)) for ladder in ladders]

    def total() -> int:
        units = zip(allocator.units, ladders, places, strict=True)
        return allocator.fixed_bytes + sum(unit.sizes[ladder[place]] for unit, ladder, place in units)

    order = list(range(len(places)))
    for step in (-1, 1):
        for _ in range(40):
            draw.shuffle(order)
            for index in order:
                moved = places[index] + step
                if not 0 <= moved < len(ladders[index]) or (step < 0 and total() <= nbytes):
                    continue
                places[index] = moved
                if total() > nbytes and step > 0:
                    places[index] -= step
    chosen: list[tuple[Unit, str]] = [
        (unit, ladder[place]) for unit, ladder, place in zip(allocator.units, ladders, places, strict=True)
    ]
    return allocator.assigned(tuple(chosen))


def plans(allocator: Allocator, blind: Allocator, mixes: list[str]) -> dict[str, Resolution]:
    """Label -> plan: of every mix itself, the fit, the error-only and a random one at its bytes."""
    found = {}
    for seed, name in enumerate(mixes):
        nbytes = allocator.bytes_like(name)
        mix = next(mix for mix in allocator.mixes if mix.name == name)
        found[f"{name} mix"] = mix.resolution
        found[f"{name} fit"] = allocator.fit(nbytes).resolution
        found[f"{name} errors"] = blind.fit(nbytes).resolution
        found[f"{name} random"] = random_plan(allocator, nbytes, seed).resolution
    return found


def measured(prober: Prober, text: Text, wanted: dict[str, Resolution], seconds: dict[str, float]) -> dict[str, dict]:
    """Label -> figures; the time of a probe goes to `seconds`."""
    steps, start = measured_plans(prober, text, wanted), time.monotonic()
    while True:
        try:
            standing: Standing = next(steps)
            if standing.stage == "KL divergence" and standing.part == 0:
                start = time.monotonic()
        except StopIteration as end:
            seconds[f"one probe on {text.path.name}"] = (time.monotonic() - start) / len(wanted)
            return end.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--mixes", default=MIXES)
    parser.add_argument("--types")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--held-out-chunks", type=int, default=6)
    parser.add_argument("-t", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, imatrix = load_model(options.model), load_imatrix(options.imatrix) if options.imatrix else None
    types, seconds = TypeSet.of(options.types, fast=options.fast), {}
    prober = Prober(model, imatrix, Engine(threads=options.t))
    sensitivities = Sensitivities(prober, Text(options.file, 512, options.chunks), types)
    start = time.monotonic()
    for standing in sensitivities.steps():
        print(f"\r\x1b[K{standing.stage} {standing.part:.0%} {standing.note}", end="", flush=True)
    seconds["sensitivities not known yet"] = time.monotonic() - start
    costs = sensitivities.costs()
    limits = Limits(types)
    allocator = Allocator(model, Plan(), imatrix, costs, limits)
    blind = Allocator(model, Plan(), imatrix, ErrorsAlone(costs.errors, *rest(costs)), limits)
    start = time.monotonic()
    known = {mix.name for mix in allocator.mixes}
    wanted = plans(allocator, blind, [name for name in options.mixes.split(",") if name in known])
    seconds["all plans"] = time.monotonic() - start
    report(allocator, costs, wanted, prober, options, seconds)


def rest(costs: CostModel) -> tuple:
    """What a CostModel is made of, beside the errors."""
    groups: dict[str, list[str]] = {}
    for name, group in costs.group_of.items():
        groups.setdefault(group, []).append(name)
    return {group: tuple(names) for group, names in groups.items()}, costs.probes, costs.everything


def report(
    allocator: Allocator,
    costs: CostModel,
    wanted: dict[str, Resolution],
    prober: Prober,
    options: argparse.Namespace,
    seconds: dict[str, float],
) -> None:
    predicted = {label: costs.predicted_of(resolution).kld for label, resolution in wanted.items()}
    kept = {"predicted": predicted, "bytes": {label: one.total_bytes for label, one in wanted.items()}, "texts": {}}
    print(f"\r\x1b[K{options.model.name}: noise {costs.noise:.2g}, {len(allocator.units)} units")
    for text in options.texts:
        found = measured(prober, Text(text, 512, options.held_out_chunks), wanted, seconds)
        kept["texts"][text.name] = {label: (one["mean_kld"], one["mean_kld_error"]) for label, one in found.items()}
        print(f"\n{text.name}, {options.held_out_chunks} chunks of 512")
        ratios = []
        for name in dict.fromkeys(label.split()[0] for label in wanted):
            cells = []
            for kind in ("mix", "fit", "errors", "random"):
                one = found[f"{name} {kind}"]
                cells.append(f"{kind} {one['mean_kld']:.5f} ±{one['mean_kld_error']:.5f}")
            ratios.append(found[f"{name} fit"]["mean_kld"] / found[f"{name} mix"]["mean_kld"])
            size = wanted[f"{name} fit"].total_bytes / wanted[f"{name} mix"].total_bytes
            print(f"{name:8} {'  '.join(cells)}  fit/mix {ratios[-1]:.3f} at {size:.4f} of the bytes")
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        order = spearman([predicted[label] for label in found], [one["mean_kld"] for one in found.values()])
        factors = sorted(one["mean_kld"] / predicted[label] for label, one in found.items())
        print(f"geometric mean of fit/mix {mean:.3f}; rank correlation over {len(found)} plans {order:.3f}; ", end="")
        print(f"measured/predicted {factors[0]:.2f} to {factors[-1]:.2f}, median {factors[len(factors) // 2]:.2f}")
    print("\n" + "; ".join(f"{what} {value:.1f} s" for what, value in seconds.items()))
    if options.json:
        options.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
