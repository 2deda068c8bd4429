"""`surgeon fit` beside llama-quantize's mixes, random and error-only allocations, at equal bytes, on held-out texts.

    python tests/benchmarks/bench_fit.py MODEL --imatrix F -f CALIBRATION TEXT [TEXT ...] [--mixes Q3_K_M,Q4_K_M]
        [--moments F] [--kinds stock,mix,fit,errors,random] [--results FILE] [-t N]

Every plan is measured by a probe (the model is loaded once per text). Prints the KL divergence of each plan with its
standard error over tokens, the geometric mean of fit over the first of the kinds, and the rank correlation of predicted
and measured. With --moments everything but `stock` (the mix as llama-quantize writes it) is encoded with feedback.
Sensitivities measured before are used, and so is what --results holds, a line of JSON for each plan and text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path

from surgeon.engine.protocol import Engine, Swap
from surgeon.fit.allocation import Allocator, Fit, Limits, Unit
from surgeon.fit.candidates import TypeSet
from surgeon.fit.cost_model import CostModel, encoder_of
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.rank_correlation import spearman
from surgeon.measure.fitting.sensitivities import Sensitivities
from surgeon.measure.fitting.swap_check import checked
from surgeon.measure.probing import Place, Prober, Text
from surgeon.measure.progress import Standing
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments
from surgeon.plan.plan import Plan
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve

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


def plans(
    allocator: Allocator, blind: Allocator, options: argparse.Namespace, sensitivities: Sensitivities
) -> dict[str, Resolution]:
    """Label -> plan: of every mix itself, the fit, the error-only and a random one at its bytes."""

    def fit(nbytes: int) -> Resolution:
        made, mix = allocator.fit(nbytes), allocator.mix_within(nbytes)
        steps = checked(sensitivities.prober, sensitivities.text, allocator, made, mix)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value.resolution

    found, known = {}, {mix.name: mix.resolution for mix in allocator.mixes}
    for seed, name in enumerate(options.mixes.split(",")):
        if name not in known:
            continue
        nbytes = allocator.bytes_like(name)
        bare = replace(known[name].plan, moments_file=None, shrink=None)
        kinds = {
            "stock": lambda bare=bare: resolve(allocator.model, bare, allocator.imatrix),
            "mix": lambda name=name: known[name],
            "fit": lambda nbytes=nbytes: fit(nbytes),
            "errors": lambda nbytes=nbytes: blind.fit(nbytes).resolution,
            "random": lambda nbytes=nbytes, seed=seed: random_plan(allocator, nbytes, seed).resolution,
        }
        found |= {f"{name} {kind}": kinds[kind]() for kind in options.kinds.split(",")}
    return found


class Results:
    """What was measured, a line of JSON each, found again by plan, text and chunks."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.rows = {row["key"]: row for row in map(json.loads, lines)}

    def key(self, plan: Resolution, text: Text) -> str:
        types = sorted((op.source, op.to_type) for op in plan.kept if op.action == "convert")
        encoder = encoder_of(plan.moments, plan.plan.shrink, plan.plan.feedback_rounds)
        parts = (plan.model.file.path.name, encoder, text.path.name, text.n_chunks, types)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def keep(self, label: str, text: Text, plan: Resolution, figures: dict, predicted: float) -> None:
        row = {
            "key": self.key(plan, text), "model": plan.model.file.path.name, "text": text.path.name,
            "chunks": text.n_chunks, "label": label, "feedback": plan.moments is not None, "bytes": plan.total_bytes,
            "kld": figures["mean_kld"], "error": figures["mean_kld_error"], "predicted": predicted,
        }  # fmt: skip
        self.rows[row["key"]] = row
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class KeepingProber(Prober):
    """Encodes every plan once for all texts."""

    def swaps(self, plan: Resolution) -> list[Swap]:
        kept = self.__dict__.setdefault("kept", {})
        types = frozenset((op.source, op.to_type, op.feedback) for op in plan.kept if op.action == "convert")
        if types not in kept:
            kept[types] = super().swaps(plan)
        return kept[types]


def measure(prober: Prober, text: Text, wanted: dict[str, Resolution], costs: CostModel, results: Results) -> float:
    """Measure what is not known yet; seconds of one probe."""
    missing = {label: plan for label, plan in wanted.items() if results.key(plan, text) not in results.rows}
    if not missing:
        return 0.0
    steps = prober.base(text, Place(0, 2))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            base = end.value
            break
    start = time.monotonic()
    for item in prober.probe(base, missing, "KL divergence", Place(1, 2)):
        if isinstance(item, Standing):
            print(f"\r\x1b[K{item.part:.0%} {item.note}", end="", flush=True)
            continue
        plan = missing[item[0]]
        predicted = costs.predicted_of(plan)
        results.keep(item[0], text, plan, item[1], predicted.kld if predicted else 0.0)
    return (time.monotonic() - start) / len(missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--moments", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--mixes", default=MIXES)
    parser.add_argument("--kinds", default="mix,fit,errors,random")
    parser.add_argument("--types")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--held-out-chunks", type=int, default=6)
    parser.add_argument("--results", type=Path)
    parser.add_argument("-t", type=int, default=1)
    options = parser.parse_args()
    model, imatrix = load_model(options.model), load_imatrix(options.imatrix) if options.imatrix else None
    moments = load_moments(options.moments) if options.moments else None
    types, seconds = TypeSet.of(options.types, fast=options.fast), {}
    prober = KeepingProber(model, imatrix, Engine(threads=options.t), moments)
    sensitivities = Sensitivities(prober, Text(options.file, 512, options.chunks), types)
    start = time.monotonic()
    for standing in sensitivities.steps():
        print(f"\r\x1b[K{standing.stage} {standing.part:.0%} {standing.note}", end="", flush=True)
    seconds["sensitivities not known yet"] = time.monotonic() - start
    costs, limits = sensitivities.costs(), Limits(types)
    allocator = Allocator(model, Plan(), imatrix, costs, limits, moments)
    errors = ErrorsAlone(costs.errors, *rest(costs), costs.encoder)
    start = time.monotonic()
    wanted = plans(allocator, Allocator(model, Plan(), imatrix, errors, limits, moments), options, sensitivities)
    seconds["all plans"] = time.monotonic() - start
    print(f"\r\x1b[K{model.file.path.name}: noise {costs.noise:.2g}, {len(allocator.units)} units")
    results = Results(options.results)
    for path in options.texts:
        text = Text(path, 512, options.held_out_chunks)
        seconds[f"one probe on {path.name}"] = measure(prober, text, wanted, costs, results)
        report(text, wanted, results)
    print("\n" + "; ".join(f"{what} {value:.1f} s" for what, value in seconds.items()))


def rest(costs: CostModel) -> tuple:
    """What a CostModel is made of, beside the errors."""
    groups: dict[str, list[str]] = {}
    for name, group in costs.group_of.items():
        groups.setdefault(group, []).append(name)
    return {group: tuple(names) for group, names in groups.items()}, costs.probes, costs.everything


def report(text: Text, wanted: dict[str, Resolution], results: Results) -> None:
    """A line for each mix, then the summary."""
    rows = {label: results.rows[results.key(plan, text)] for label, plan in wanted.items()}
    kinds = list(dict.fromkeys(label.split()[1] for label in rows))
    own = kinds[0]  # what the fit is compared with
    print(f"\r\x1b[K\n{text.path.name}, {text.n_chunks} chunks of 512")
    ratios = []
    for name in dict.fromkeys(label.split()[0] for label in rows):
        found = {kind: rows[f"{name} {kind}"] for kind in kinds}
        cells = [f"{kind} {one['kld']:.5f} ±{one['error']:.5f}" for kind, one in found.items()]
        ratios.append(found["fit"]["kld"] / found[own]["kld"])
        size = found["fit"]["bytes"] / found[own]["bytes"]
        print(f"{name:8} {'  '.join(cells)}  fit/{own} {ratios[-1]:.3f} at {size:.4f} of the bytes")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"geometric mean of fit/{own} {mean:.3f}, largest {max(ratios):.3f}")
    told = [one for one in rows.values() if one["predicted"]]
    order = spearman([one["predicted"] for one in told], [one["kld"] for one in told])
    factors = sorted(one["kld"] / one["predicted"] for one in told)
    print(f"rank correlation over {len(told)} plans {order:.3f}; measured/predicted ", end="")
    print(f"{factors[0]:.2f} to {factors[-1]:.2f}, median {factors[len(factors) // 2]:.2f}")


if __name__ == "__main__":
    main()
