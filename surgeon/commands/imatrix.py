"""`surgeon imatrix`: llama-imatrix's command line, and the influence of every layer in the same pass."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.engine_options import add_engine_options, add_window_options, engine_of, require_file
from surgeon.commands.influence_table import influence_json, influence_table
from surgeon.commands.progress_line import ProgressLine
from surgeon.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from surgeon.measure.imatrix_run import Collection

DESCRIPTION = """Collect an importance matrix of MODEL over TEXT, as llama-imatrix does, and in the same pass the block
influence and layer-input modification of every layer, the ZD score of its weights, and the mean of every channel.
These lie in tensors of their own in the GGUF; llama-quantize ignores them. Without -f, the --in-file matrices are
merged or converted only."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="surgeon imatrix", description=DESCRIPTION)
    add_engine_options(parser, model_required=False)  # merging needs none
    add_window_options(parser)
    parser.add_argument("-f", "--file", metavar="TEXT", help="the text to run over")
    parser.add_argument("-o", "--output", "--output-file", default="imatrix.gguf", metavar="OUT")
    parser.add_argument("--output-format", choices=("gguf", "dat"), help="default: gguf, or dat for OUT.dat")
    parser.add_argument("--in-file", action="append", default=[], metavar="F[,F]", help="matrices to add to the result")
    parser.add_argument(
        "--chunk", "--from-chunk", type=int, default=0, metavar="N", help="leave out the first N chunks"
    )
    parser.add_argument("--process-output", action="store_true", help="output.weight too")
    parser.add_argument("--parse-special", action="store_true", help="control tokens written in the text count as such")
    parser.add_argument("--no-ppl", action="store_true", help="do not compute the perplexity on the way")
    parser.add_argument(
        "-ofreq", "--output-frequency", type=int, default=10, metavar="N", help="save every N chunks (10)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with OUT.partial, which an interrupted run left")
    parser.add_argument("--overwrite", action="store_true", help="OUT may exist")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    from surgeon.engine.protocol import ImatrixJob
    from surgeon.measure.imatrix_run import Collection

    merge = tuple(Path(require_file(name)) for group in options.in_file for name in group.split(","))
    out = Path(options.output)
    dat = options.output_format == "dat" if options.output_format else out.suffix == ".dat"
    if options.file is None:
        return _merge(merge, out, dat=dat, overwrite=options.overwrite)
    if options.model is None:
        raise UsageError("-m MODEL is missing: the model to run over the text")
    job = ImatrixJob(
        options.model, require_file(options.file), options.ctx_size, options.batch_size, options.ubatch_size,
        options.chunk, options.chunks, options.process_output, options.parse_special, not options.no_ppl,
        max(1, options.output_frequency),
    )  # fmt: skip
    return _collect(Collection(job, out, merge, dat, options.resume, options.overwrite), options)


def _merge(merge: tuple[Path, ...], out: Path, *, dat: bool, overwrite: bool) -> int:
    from surgeon.imatrix.files import load_imatrix
    from surgeon.imatrix.influence import load_influence, merged
    from surgeon.measure.imatrix_run import write_out

    if not merge:
        raise UsageError("nothing to do: -f TEXT collects, --in-file F merges or converts")
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already; another name, or --overwrite")
    imatrix, influence = merged([(load_imatrix(path), load_influence(path)) for path in merge])
    write_out(imatrix, influence, out, dat=dat)
    print(f"{out}: {len(imatrix.entries)} entries, {imatrix.chunk_count} chunks of {imatrix.chunk_size} tokens")
    return 0


def _collect(wanted: Collection, options: argparse.Namespace) -> int:
    from surgeon.engine.protocol import Finished
    from surgeon.measure.imatrix_run import ImatrixRun

    run = ImatrixRun(engine_of(options), wanted)
    values: dict[str, float] = {}
    try:
        for message in ProgressLine("imatrix", "chunks").watch(run.messages()):
            if isinstance(message, Finished):
                values = message.values
    except (KeyboardInterrupt, Cancelled):
        _tell_partial(wanted)
        raise
    finally:
        if options.show_log and run.run is not None:
            print(run.run.log_text(), file=sys.stderr)
    assert run.current is not None  # messages() ended well
    imatrix, influence = run.current
    if options.json:
        layers = influence_json(influence) if influence is not None else []
        print(json.dumps({"output": str(wanted.out), "entries": len(imatrix.entries),
                          "chunks": imatrix.chunk_count, **values, "layers": layers}))  # fmt: skip
        return 0
    print(f"{wanted.out}: {len(imatrix.entries)} entries, {imatrix.chunk_count} chunks of {imatrix.chunk_size} tokens")
    if influence is not None:
        print(influence_table(influence))
    return 0


def _tell_partial(wanted: Collection) -> None:
    if wanted.partial.exists():
        print(f"surgeon: what was collected is in {wanted.partial}; --resume goes on with it", file=sys.stderr)
