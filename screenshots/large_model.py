"""The shape of Gemma 3 12B with figures to show: nothing here was measured on it.

Names, shapes, types, sizes and bits per weight are the program's own. Everything that would need the weights is
illustrative: the importance matrix, what leaving a layer out costs, how much each part of the model matters, and the
trials that follow from it. They are scaled to three figures that were published with gemma-3-12b-it-pruned, of other
calibration and text: the perplexity of the original, the KL divergence of a Q4_K_M of the whole model, and that of the
model without layers 26 and 29 as Q8_0.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from surgeon.engine.protocol import Engine, LayerDamage, PruneScanJob
from surgeon.fit.allocation import Allocator
from surgeon.fit.candidates import CODEBOOKS, K_TYPES, probe_types
from surgeon.fit.cost_model import CostModel, GroupProbes, Probe
from surgeon.fit.groups import groups_of
from surgeon.fit.tensor_errors import weighted_error
from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value, ValueType
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, save
from surgeon.measure.scans.prune_choice import PruneChoice
from surgeon.measure.scans.prune_scan import PruneScan
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolution import Resolution
from surgeon.session.session import Session
from surgeon.trials.journal import Journal, Measured, Trial
from surgeon.trials.records import recipe_text
from surgeon.tui.jobs.scanning import ScanJob
from surgeon_kernels.formats import FORMATS

SHAPES = Path(__file__).parents[1] / "tests/golden/types/gemma-3-12b.json"
LARGE, LAYERS, PRUNED = "gemma-3-12b-BF16.gguf", 48, (26, 29)
LARGE_IMATRIX = "gemma-3-12b.imatrix.gguf"
PERPLEXITY, KLD_OF_Q4_K_M, KLD_OF_PRUNED = 9.0428, 0.04556, 1.0043  # as published
CHUNKS, TOKENS = 400, 512  # of the importance matrix
# Kind -> how much a weight of it matters, beside ffn_down.
MATTERS = {"attn_v": 3.0, "attn_k": 1.6, "attn_output": 1.3, "ffn_down": 1.0, "ffn_up": 0.8, "attn_q": 0.7,
           "ffn_gate": 0.6, "token_embd": 0.9}  # fmt: skip
BANDS = (1.8, 0.7, 0.6, 1.4)  # how much more it matters in the quarters of the depth
INPUTS = {"attn_q": "attn", "attn_k": "attn", "attn_v": "attn", "ffn_gate": "ffn", "ffn_up": "ffn"}  # what they share


def large_model(path: Path) -> None:
    """A file with the names and shapes of Gemma 3 12B; the weights are a hole that takes no room."""
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))["tensors"]
    entries = []
    for pattern, (dims, kind) in shapes.items():
        ne, format_ = tuple(n for n in dims if n > 1), FORMATS[kind.upper()]
        for layer in range(LAYERS) if "*" in pattern else (0,):
            name = pattern.replace("*", str(layer))
            entries.append(Entry(name, ne, format_.number, math.prod(ne) * format_.block_bytes))
    layout = header(
        [
            ("general.architecture", Value.of(ValueType.STRING, "gemma3")),
            ("gemma3.block_count", Value.of(ValueType.UINT32, LAYERS)),
            ("gemma3.attention.sliding_window", Value.of(ValueType.UINT32, 1024)),
        ],
        entries,
        32,
    )
    with path.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)


def large_imatrix(model: Path, path: Path) -> None:
    """Activations that drift from layer to layer, grow with the depth, and have a few large channels."""
    random = np.random.default_rng(12)
    matrices = [tensor for tensor in load_model(model).tensors if tensor.layer == 0 and len(tensor.ne) > 1]
    sizes = {tensor.short: tensor.ne[0] for tensor in matrices}
    spread = {short: random.normal(0, 1, columns) for short, columns in sizes.items()}
    entries = {}
    for layer, change in enumerate(_along(layer_damages())):
        shared: dict[str, np.ndarray] = {}
        for short, columns in sizes.items():
            drift = 0.15 + 0.5 * change
            spread[short] = math.sqrt(1 - drift**2) * spread[short] + drift * random.normal(0, 1, columns)
            squares = np.exp((1.3 if short == "ffn_down" else 0.9) * spread[short] + 0.04 * layer + change)
            sums = shared.setdefault(INPUTS.get(short, short), squares.astype(np.float32)[None, :] * CHUNKS * TOKENS)
            entries[f"blk.{layer}.{short}.weight"] = ImatrixEntry(sums, np.array([CHUNKS * TOKENS], np.int64))
    influence = np.ones((LAYERS, 5))
    influence[:, :2] = (1 - 0.25 * np.array(_along(layer_damages())) - 0.02)[:, None]
    save(Imatrix(path, entries, ("calibration.txt",), CHUNKS), Influence(influence), path)


def layer_damages() -> dict[int, float]:
    """What leaving each layer out costs: the ends much, PRUNED least."""
    random = np.random.default_rng(3)
    found = {}
    for layer in range(LAYERS):
        depth = layer / (LAYERS - 1)
        kld = 0.5 + 2.2 * math.exp(-layer / 1.5) + 0.5 * (depth - 0.58) ** 2 + 1.6 * math.exp((layer - 47) / 1.2)
        found[layer] = kld * (1.12 if layer % 6 == 5 else 1.0) * float(random.uniform(0.96, 1.1))
    return found | {26: 0.4417, 29: 0.4682}


def _along(damages: dict[int, float]) -> list[float]:
    """By layer, as parts of the largest."""
    return [math.sqrt(damages[layer] / max(damages.values())) for layer in sorted(damages)]


def large_session(folder: Path) -> Session:
    """With statistics, damages and costs, and Q4_K_M planned."""
    session = Session(load_model(folder / LARGE))
    session.use_imatrix(folder / LARGE_IMATRIX)
    session.damages.update(layer_damages())
    session.measure()
    session.use_costs(_costs(session))
    session.set_file_type("Q4_K_M")
    session.begin_here()
    return session


def _costs(session: Session) -> CostModel:
    """The errors of types are those of normally distributed weights."""
    rows = np.random.default_rng(0).normal(0, 1, (32, 3840)).astype(np.float32)
    weights = np.ones(3840, np.float32)
    errors = {kind: float(np.divide(*weighted_error(rows, kind, weights))) for kind in (*K_TYPES, *CODEBOOKS)}
    groups = {group: tuple(facts.name for facts in members) for group, members in groups_of(session.model).items()}
    random = np.random.default_rng(7)
    of_tensors = {name: _scaled(errors, random.lognormal(0, 0.2)) for names in groups.values() for name in names}

    def probes(scale: float) -> dict[str, GroupProbes]:
        found = {}
        for group, members in groups_of(session.model).items():
            kind, _, band = group.partition("@")
            weights = sum(facts.tensor.n_elements for facts in members)
            each = scale * MATTERS[kind] * (BANDS[int(band)] if band else 1.0) * weights / 1e9
            low, middle = (
                Probe(dict.fromkeys(groups[group], name), each * errors[name], 0.04 * each * errors[name])
                for name in probe_types(members[0])
            )
            found[group] = GroupProbes(low, middle)
        return found

    rough = CostModel(of_tensors, groups, probes(1.0), None)
    mix = rough.predicted_of(session.preview(replace(session.plan, file_type="Q4_K_M")))
    assert mix is not None  # every tensor has errors and a group
    return CostModel(of_tensors, groups, probes(KLD_OF_Q4_K_M / mix.kld), None)


def _scaled(errors: dict[str, float], factor: float) -> dict[str, float]:
    return {kind: factor * error for kind, error in errors.items()}


def keep_trials(session: Session, journal: Journal) -> None:
    """Mixes, and fits at sizes between them: sizes as the program says, figures illustrative."""
    costs = session.costs
    assert costs is not None
    mixes = ("Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
    bare = Plan(imatrix_file=session.plan.imatrix_file)
    plans = [(name, replace(bare, file_type=name)) for name in mixes]
    allocator = Allocator(session.model, bare, session.imatrix, costs)
    plans += [(f"fit {size:.1f}GB", allocator.fit(round(size * 1e9), "size").plan) for size in (5.0, 6.0, 7.0, 8.0)]
    random = np.random.default_rng(5)
    for number, (label, plan) in enumerate(plans):
        resolution = session.preview(plan)
        predicted = costs.predicted_of(resolution)
        assert predicted is not None
        kld = predicted.kld * float(random.normal(1, 0.04))
        recipe = recipe_text(plan, session.imatrix)
        journal.add(_trial(session, f"gemma-3-12b-{label}", number, resolution, kld, recipe))


def _trial(session: Session, label: str, number: int, resolution: Resolution, kld: float, recipe: str) -> Trial:
    figures = {
        "ppl": PERPLEXITY * math.exp(0.37 * kld),
        "ppl_error": 0.0739,
        "mean_kld": kld,
        "mean_kld_error": 0.009 * kld,
        "same_top": 1 - 0.36 * math.sqrt(kld),
    }
    conditions = {"n_ctx": 512, "n_chunks": 64, "text": "held-out.txt"}
    when = f"2026-11-{20 + number // 4:02}T{8 + 3 * (number % 4):02}:{(17 * number) % 60:02}:00+00:00"
    return Trial(
        f"trial-{number}", when, label, resolution.total_bytes, session.model.file.nbytes, resolution.bpw, recipe,
        measured=Measured(figures, conditions),
    )  # fmt: skip


def scan_of(session: Session, text: Path) -> ScanJob:
    """A scan of all layers that has measured everything and chooses PRUNED."""
    job = PruneScanJob(str(session.model.file.path), str(text), [[layer] for layer in range(LAYERS)])
    scan = PruneScan(Engine(), job, text, "illustrative")
    for layers, kld in [*(((layer,), kld) for layer, kld in layer_damages().items()), (PRUNED, KLD_OF_PRUNED)]:
        perplexity, same_top = PERPLEXITY * math.exp(kld), 1 - 0.36 * math.sqrt(kld)
        scan.damages[layers] = LayerDamage(list(layers), kld, perplexity, same_top)
    return ScanJob(scan, PruneChoice(scan, "single", len(PRUNED), LAYERS))
