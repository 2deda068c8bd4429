"""`surgeon heal`: refit matrices of a pruned model so that it makes up for the layers that are gone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.engine_options import add_llama_options, positive
from surgeon.commands.options.parser import Parser
from surgeon.commands.printing.progress_line import StandingLine
from surgeon.json_text import json_text
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.engine.protocol import HealedMatrix
    from surgeon.measure.healing.heal_run import HealRequest, HealRun

DESCRIPTION = """Make up for pruned layers without training: ffn_down before each gap, then attn_output and ffn_down
of every later layer are refitted by least squares, so that the pruned model's streams come near the unpruned model's
on TEXT. Of experts, ffn_down of each is refitted that gets four tokens for each of its columns. The result is a heal
file; `surgeon quantize --prune-layers … --heal HEAL` uses it for any type. Give text of every kind the model is used
for (-f may be repeated): with several, the strength of each refit is the one that serves a kind best that was not
fitted. With --held-out, the pruned and the healed model are measured on other texts, and where healing makes one of
them worse only the matrices before the gaps are kept, or nothing is written."""


def _parser() -> Parser:
    parser = Parser(prog="surgeon heal", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", type=Path, help="the unpruned model, a GGUF file")
    parser.add_argument("--prune-layers", metavar="L", required=True, help="layers that will be pruned: 26,29 or 3-5")
    parser.add_argument(
        "-f", "--file", metavar="TEXT", type=Path, action="append", required=True, help="text to fit on (repeatable)"
    )
    parser.add_argument("-o", "--output", metavar="HEAL", type=Path, required=True, help="the heal file to write")
    parser.add_argument(
        "--held-out", metavar="TEXT", type=Path, action="append", default=[],
        help="text to measure on, not among those fitted (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--held-out-chunks", metavar="N", type=positive, default=8, help="chunks of each held-out text (8)"
    )
    parser.add_argument(
        "--heal-tokens", metavar="N", type=_tokens, default=30.0,
        help="tokens to fit on for each column of ffn_down (30); fewer overfit, below 12 as --before-only",
    )  # fmt: skip
    parser.add_argument(
        "--before-only", action="store_true", help="heal only ffn_down, or that of experts, before each gap"
    )
    parser.add_argument(
        "--keep-experts", action="store_true", help="leave experts as they are: heal only attention beside them"
    )
    parser.add_argument(
        "--keep-worse", action="store_true", help="write HEAL also where it makes a held-out text worse"
    )
    parser.add_argument("-c", "--ctx-size", metavar="N", type=positive, default=512, help="tokens per chunk (512)")
    parser.add_argument("--i-know", action="store_true", help="as in surgeon quantize")
    add_llama_options(parser, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print memory, disk and time; do nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing HEAL")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _tokens(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    from surgeon.commands.options.engine_options import engine_of
    from surgeon.folders import cache_folder
    from surgeon.layer_lists import read_spans
    from surgeon.measure.healing.heal_run import HealRequest, HealRun
    from surgeon.model.model import load_model

    model = load_model(options.model)
    with model.file:
        pruned = read_spans(options.prune_layers, [layer.index for layer in model.layers])
        request = HealRequest(
            model, pruned, tuple(options.file), options.output, tuple(options.held_out), options.held_out_chunks,
            options.heal_tokens, options.ctx_size, options.before_only, options.keep_worse, options.i_know,
            options.overwrite or options.dry_run, not options.keep_experts,
        )  # fmt: skip
        request.check()
        run = HealRun(request, engine_of(options), cache_folder())
        tell([f"surgeon: {_told(run)}"], sys.stderr)
        if not options.dry_run:
            run_shown(run)
            _report(run, request, as_json=options.json)
    return 0


def _told(run: HealRun) -> str:
    """What it takes; the time as the last run on this machine went, else as one core multiplies alone."""
    from surgeon.figures import duration
    from surgeon.measure.estimate import of_heal
    from surgeon.measure.speeds import Speeds

    cost, estimate = run.cost(), of_heal(run)
    known = Speeds.of(run.request.model.file.paths[0], run.engine).seconds(estimate.stages)
    time = f"{duration(cost.seconds())} on one core" if known is None else duration(known)
    told = f"healing takes about {time}; {estimate.on_disk()[0]}, {estimate.in_memory()[0]}; for {estimate.work}"
    if cost.per_expert is not None:
        told += f" and {cost.per_expert:.1f} a column of an expert's (fewer than 4, and it is left as it is)"
    return told


def run_shown(run: HealRun) -> None:
    """Run it with a progress line, and a line for every matrix, on stderr."""
    from surgeon.commands.options.interruption import stopped_by_signals
    from surgeon.engine.protocol import HealedMatrix

    line = StandingLine()
    with stopped_by_signals() as cancelled:
        run.cancelled = cancelled
        try:
            for item in run.steps():
                if isinstance(item, HealedMatrix):
                    line.keep(_matrix(item))
                else:
                    line.show(item)
        finally:
            line.clear()


def _matrix(message: HealedMatrix) -> str:
    name = f"blk.{message.layer}.{message.kind}"
    note = f"; {message.note}" if message.note else ""
    if message.method == "kept":
        if not message.before:  # it was not looked at
            return f"{name:<22} kept: {message.note}"
        return f"{name:<22} error {message.before:.4f}  kept: nothing does better on text that is not fitted{note}"
    return (
        f"{name:<22} error {message.before:.4f} -> {message.after:.4f}  {message.method}, λ {message.penalty:g}, "
        f"shrunk to {message.shrink:.2f}{note}"
    )


def _report(run: HealRun, request: HealRequest, *, as_json: bool) -> None:
    from surgeon.commands.printing.text_table import table

    origin = run.origin
    assert origin is not None  # steps() has ended well
    if as_json:
        print(json_text({
            "output": str(request.out), "pruned": sorted(origin.pruned), "tokens": origin.tokens,
            "chunks": list(origin.chunks), "before_only": run.before_only,
            "matrices": [vars(refit) for refit in origin.refits],
            "held_out": [vars(text) for text in origin.held_out],
        }))  # fmt: skip
        return
    healed = sum(1 for refit in origin.refits if refit.method != "kept")
    tell([f"{request.out}: {healed} of {len(origin.refits)} matrices refitted on {origin.summary()}"])
    if run.before_only and not request.before_only:
        print("too few tokens for the layers behind the gaps, which are left as they are; give more text (-f)")
    if origin.held_out:
        rows = [
            [
                text.text,
                f"{text.plain:.4f} ± {text.plain_error:.4f}",
                f"{text.healed:.4f} ± {text.healed_error:.4f}",
                f"{100 * text.healed / text.plain:.0f} %",
            ]
            for text in origin.held_out
        ]
        print(table(["held-out text", "KLD pruned", "KLD healed", "left"], rows))
