"""`surgeon expert-scan`: what pruning experts costs, measured before anything is written."""

from __future__ import annotations

import argparse
import hashlib
import sys
from functools import partial
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
from surgeon.errors import Cancelled, UsageError
from surgeon.json_text import json_text

if TYPE_CHECKING:
    from surgeon.engine.protocol import ExpertDamage
    from surgeon.imatrix.experts import ExpertSums
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.measure.scans.expert_scan import Cut, ExpertScan
    from surgeon.model.model import Model

DESCRIPTION = """KL divergence from the whole model with the least salient experts silenced, on a few chunks of TEXT: a
curve over the share of experts silenced in every layer, then each layer alone. The model is loaded once and nothing is
written: the router's logits of these experts are overwritten by -inf while the model runs, which is what the pruned
model computes. Measure on another text than the imatrix was collected on. Results are kept: run it again to resume."""
_BAR = 24


def _parser() -> Parser:
    parser = Parser(prog="surgeon expert-scan", description=DESCRIPTION)
    add_engine_options(parser)
    parser.add_argument("-f", "--file", action=Once, required=True, metavar="TEXT")
    parser.add_argument("--imatrix", required=True, metavar="F", help="collected by surgeon imatrix: ranks the experts")
    parser.add_argument("--by", choices=("saliency", "calls"), default="saliency", help="what ranks them (saliency)")
    parser.add_argument(
        "--shares", default="12.5,25,37.5,50", metavar="P,P", help="of the curve, in percent (12.5,25,37.5,50)"
    )
    parser.add_argument(
        "--layers-at", type=float, default=25, metavar="P", help="share to silence in each layer alone (25; 0: skip)"
    )
    parser.add_argument("-c", "--ctx-size", type=positive, default=512, metavar="N", help="tokens per chunk (512)")
    parser.add_argument("-ub", "--ubatch-size", type=positive, default=512, metavar="N", help="per graph (512)")
    parser.add_argument("--chunks", type=positive, default=8, metavar="N", help="how many (8)")
    add_scheduler_option(parser)
    parser.add_argument("--restart", action="store_true", help="ignore earlier results")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    scan = _scan(options)
    if options.restart:
        scan.forget()
    else:
        scan.load()
    try:
        with fleet_of(options.scheduler, scan.engine) as fleet:
            if fleet is not None:
                from surgeon.fleet.scans import experts_scanned

                scan.elsewhere = partial(experts_scanned, fleet)
            for _ in ProgressLine("expert-scan", "chunks" if fleet is None else "tasks").watch(scan.messages()):
                pass
    except (KeyboardInterrupt, Cancelled):
        done = sum(cut.key in scan.damages for cut in scan.cuts)
        print(f"surgeon: {done} of {len(scan.cuts)} measured and kept; run it again to resume", file=sys.stderr)
        raise
    finally:
        if options.show_log and scan.run is not None:
            print(scan.run.log_text(), file=sys.stderr)
    _print(scan, options)
    return 0


def _scan(options: argparse.Namespace) -> ExpertScan:
    from surgeon.engine.protocol import ExpertScanJob
    from surgeon.folders import state_folder
    from surgeon.gguf.identity import model_identity
    from surgeon.imatrix.files import load_imatrix
    from surgeon.imatrix.influence import load_influence
    from surgeon.measure.scans.expert_scan import ExpertScan
    from surgeon.model.model import load_model

    model_path, text = Path(require_file(options.model)), Path(require_file(options.file))
    imatrix = load_imatrix(require_file(options.imatrix))
    influence = load_influence(options.imatrix, channels=False)
    model = load_model(model_path)
    with model.file:
        cuts = plan_cuts(model, options, imatrix, influence.experts if influence is not None else None)
    job = ExpertScanJob(str(model_path), str(text), [], options.ctx_size, options.ubatch_size, options.chunks)
    text_digest = hashlib.sha256(text.read_bytes()).hexdigest()[:16]
    identity = f"{model_identity(model_path)}-{text_digest}-c{options.ctx_size}-n{options.chunks}"
    state = state_folder() / "expert-scan" / f"{identity}.json"
    return ExpertScan(engine_of(options), job, cuts, state, identity)


def plan_cuts(model: Model, options: argparse.Namespace, imatrix: Imatrix, sums: ExpertSums | None) -> list[Cut]:
    """The curve's points, then each layer alone. Raises SurgeonError where experts or figures are missing."""
    from surgeon.anatomy import expert_model
    from surgeon.measure.scans.expert_scan import Cut
    from surgeon.resolve.expert_choice import choose_experts

    experts = expert_model(model)
    # Only layers that run for text can be silenced.
    beyond = frozenset(layer for layer in experts.layers if layer >= experts.trunk)

    def chosen(share: float) -> dict[int, frozenset[int]]:
        return choose_experts(model, f"{share:g}%", options.by, imatrix, sums, beyond).sets

    cuts = []
    for share in _shares(options.shares):
        if experts.count - len(next(iter((sets := chosen(share)).values()))) < experts.used:
            raise UsageError(f"--shares {share:g}: fewer than the {experts.used} experts used would be left")
        cuts.append(Cut(share, None, sets, options.by))
    if options.layers_at > 0:
        cuts += [
            Cut(options.layers_at, layer, {layer: gone}, options.by)
            for layer, gone in chosen(options.layers_at).items()
        ]
    if not cuts:
        raise UsageError("nothing to measure: --shares is empty and --layers-at is 0")
    return cuts


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--shares {text}: write percents separated by commas, for instance 25,50") from None
    wrong = [share for share in shares if not 0 < share < 100]
    if wrong:
        raise UsageError(f"--shares: {wrong[0]:g} is not between 0 and 100")
    return shares


def _print(scan: ExpertScan, options: argparse.Namespace) -> None:
    measured = [(cut, scan.damages[cut.key]) for cut in scan.cuts]
    if options.json:
        cuts = [
            {"share": cut.share, "layer": cut.layer, "experts": cut.as_json(),
             **{name: value for name, value in vars(damage).items() if name != "number"}}
            for cut, damage in measured
        ]  # fmt: skip
        print(json_text({"model": options.model, "by": options.by, "cuts": cuts}))
        return
    curve = [(f"{cut.share:g}%", cut, damage) for cut, damage in measured if cut.layer is None]
    layers = [(str(cut.layer), cut, damage) for cut, damage in measured if cut.layer is not None]
    if curve:
        print(_table("silenced", curve))
    if layers:
        print(f"\nEach layer alone, {options.layers_at:g}% of its experts silenced:\n\n{_table('layer', layers)}")


def _table(head: str, rows: list[tuple[str, Cut, ExpertDamage]]) -> str:
    most = max(damage.mean_kld for _, _, damage in rows)
    cells = [
        [
            name,
            str(cut.count),
            f"{damage.mean_kld:.6f}",
            f"{damage.mean_kld_error:.6f}",
            f"{damage.ppl:.4f}",
            f"{100 * damage.same_top:.2f}%",
            ("#" * round(_BAR * max(0.0, damage.mean_kld) / most) if most > 0 else "").ljust(_BAR),
        ]
        for name, cut, damage in rows
    ]
    return table([head, "experts", "mean KLD", "±", "PPL", "same top", ""], cells)
