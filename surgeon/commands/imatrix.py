"""`surgeon imatrix`: llama-imatrix's command line, and the influence of every layer in the same pass."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import figures, streams
from surgeon.commands.options.engine_options import (
    add_engine_options,
    add_scheduler_option,
    add_window_options,
    engine_of,
    fleet_of,
    positive,
    require_file,
)
from surgeon.commands.options.parser import Once, Parser
from surgeon.commands.printing.influence_table import influence_json, influence_table
from surgeon.commands.printing.progress_line import ProgressLine
from surgeon.errors import Cancelled, UsageError
from surgeon.json_text import json_text
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.engine.protocol import Engine
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun
    from surgeon.measure.collecting.moments_run import MomentsRun

DESCRIPTION = """Collect an importance matrix of MODEL over TEXT, as llama-imatrix does, and in the same pass the block
influence and layer-input modification of every layer, the ZD score of its weights, and the mean of every channel.
These lie in tensors of their own in the GGUF; llama-quantize ignores them. Without -f, the --in-file matrices are
merged or converted only."""


def _parser() -> Parser:
    parser = Parser(prog="surgeon imatrix", description=DESCRIPTION)
    add_engine_options(parser, model_required=False)  # merging needs none
    add_window_options(parser)
    parser.add_argument("-f", "--file", action=Once, metavar="TEXT", help="the text to run over")
    parser.add_argument("-o", "--output", "--output-file", default="imatrix.gguf", metavar="OUT")
    parser.add_argument("--output-format", choices=("gguf", "dat"), help="default: gguf, or dat for OUT.dat")
    parser.add_argument("--in-file", action="append", default=[], metavar="F[,F]", help="matrices to add to the result")
    parser.add_argument("--chunk", "--from-chunk", type=int, default=0, metavar="N", help="skip the first N chunks")
    parser.add_argument("--process-output", action="store_true", help="output.weight too")
    parser.add_argument("--parse-special", action="store_true", help="parse special tokens in the text")
    parser.add_argument("--no-ppl", action="store_true", help="do not compute perplexity")
    parser.add_argument(
        "-ofreq", "--output-frequency", type=int, default=10, metavar="N", help="save every N chunks (10)"
    )
    parser.add_argument(
        "--block-chunks", type=positive, metavar="N",
        help="collect blocks of N chunks and add up their sums: the same bits on any number of workers (with "
        "--scheduler: 32)",
    )  # fmt: skip
    add_scheduler_option(parser)
    _add_moments_options(parser)
    parser.add_argument("--resume", action="store_true", help="resume from OUT.partial, left by an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="overwrite OUT if it exists")
    return parser


def _add_moments_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("second moments, for surgeon quantize --moments")
    group.add_argument(
        "--moments", metavar="F",
        help="collect the second moments of every input in the same pass; --in-file takes such files too",
    )  # fmt: skip
    group.add_argument(
        "--moments-block", type=int, default=0, metavar="N",
        help="keep only diagonal blocks of N columns of wider inputs (default: all of them)",
    )  # fmt: skip
    group.add_argument(
        "--moments-halves", type=int, choices=(1, 2), default=2,
        help="2: keep alternate parts of the text apart, to choose the shrinkage by; 1: half the size",
    )  # fmt: skip
    group.add_argument(
        "--layers", metavar="A-B",
        help="second moments of these layers only; further passes add other layers to the same file",
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    from surgeon.engine.protocol import ImatrixJob
    from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun
    from surgeon.measure.collecting.moments_run import MomentsCollection

    files = tuple(Path(require_file(name)) for group in options.in_file for name in group.split(","))
    merge, moments_files = _sorted_files(files, options)
    out = Path(options.output)
    if not options.json:
        streams.output_is_log()
    dat = options.output_format == "dat" if options.output_format else out.suffix == ".dat"
    if options.file is None:
        return _merge_all(merge, moments_files, options, out, dat=dat)
    if options.model is None:
        raise UsageError("-m MODEL is missing: the model to run over the text")
    job = ImatrixJob(
        options.model, require_file(options.file), options.ctx_size, options.batch_size, options.ubatch_size,
        options.chunk, options.chunks, options.process_output, options.parse_special, not options.no_ppl,
        max(1, options.output_frequency),
    )  # fmt: skip
    moments = None
    if options.moments is not None:
        moments = MomentsCollection(
            Path(options.moments), options.moments_block, options.moments_halves, _layers(options), moments_files,
            options.overwrite,
        )  # fmt: skip
    wanted = Collection(job, out, merge, dat, options.resume, options.overwrite, moments, options.block_chunks or 0)
    engine = engine_of(options)
    with fleet_of(options.scheduler, engine) as fleet:
        if fleet is None:
            run = ImatrixRun(engine, wanted)
            _tell_estimate(run, engine)
            return _collect(run, options)
        from surgeon.fleet.collection import FleetCollector, in_blocks

        wanted = in_blocks(wanted)
        return _collect(ImatrixRun(engine, wanted, elsewhere=FleetCollector(fleet, wanted)), options)


def _sorted_files(files: tuple[Path, ...], options: argparse.Namespace) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Importance matrices, and files of second moments. Raises UsageError for options that need `--moments`."""
    from surgeon.moments.files import is_moments

    given = options.moments_block or options.layers or options.moments_halves != 2
    moments = tuple(path for path in files if is_moments(path))
    if options.moments is None and (given or moments):
        what = moments[0] if moments else "--moments-block, --moments-halves and --layers"
        raise UsageError(f"{what}: name the file of second moments to write with --moments")
    if options.moments_block < 0 or 0 < options.moments_block < 32:
        raise UsageError(f"--moments-block {options.moments_block}: blocks have at least 32 columns")
    return tuple(path for path in files if path not in moments), moments


def _layers(options: argparse.Namespace) -> frozenset[int] | None:
    if options.layers is None:
        return None
    from surgeon.layer_lists import read_spans
    from surgeon.model.model import load_model

    model = load_model(options.model)
    with model.file:
        return read_spans(options.layers, [layer.index for layer in model.layers])


def _merge_all(
    matrices: tuple[Path, ...], moments: tuple[Path, ...], options: argparse.Namespace, out: Path, *, dat: bool
) -> int:
    """Add up files only; no model runs."""
    if moments:
        from surgeon.measure.collecting.moments_run import merge_moments

        path = Path(options.moments)
        messages = merge_moments(moments, path, overwrite=options.overwrite)
        for _ in ProgressLine("moments", "matrices").watch(messages):
            pass
        print(f"{path}: second moments of {len(moments)} files")
    return _merge(matrices, out, dat=dat, overwrite=options.overwrite) if matrices or not moments else 0


def _merge(merge: tuple[Path, ...], out: Path, *, dat: bool, overwrite: bool) -> int:
    from surgeon.imatrix.files import load_imatrix
    from surgeon.imatrix.influence import load_influence, merged
    from surgeon.measure.collecting.imatrix_run import write_out
    from surgeon.write_guard import Kind, Permit, may_write

    if not merge:
        raise UsageError("nothing to do: -f TEXT collects, --in-file F merges or converts")
    permit = Permit(merge, replace=overwrite)
    may_write(out, Kind.IMATRIX, permit)
    imatrix, influence = merged([(load_imatrix(path), load_influence(path)) for path in merge])
    write_out(imatrix, influence, out, dat=dat, permit=permit)
    tell([f"{out}: {_extent(imatrix)}"])
    return 0


def _tell_estimate(run: ImatrixRun, engine: Engine) -> None:
    """What the collection will take."""
    from surgeon.measure.estimate import of_collection
    from surgeon.measure.speeds import Speeds
    from surgeon.model.model import load_model

    wanted, account = run.collection, None if run.moments is None else run.moments.account
    model = load_model(wanted.job.model)
    with model.file:
        estimate = of_collection(model, wanted.job, engine, wanted.out.absolute().parent, account)
    tell([f"surgeon: {estimate.line(Speeds.of(Path(wanted.job.model), engine))}"], sys.stderr)


def _collect(run: ImatrixRun, options: argparse.Namespace) -> int:
    from surgeon.engine.protocol import Finished

    wanted = run.collection
    if run.moments is not None:
        print(f"surgeon: {account_line(run.moments)}", file=sys.stderr)
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
        print(json_text({"output": str(wanted.out), "entries": len(imatrix.entries),
                          "chunks": imatrix.chunk_count, **values, "layers": layers}))  # fmt: skip
        return 0
    tell([f"{wanted.out}: {_extent(imatrix)}"])
    if wanted.moments is not None:
        tell([_moments_line(wanted.moments.out)])
    tell(_expert_lines(imatrix))
    if influence is not None:
        print(influence_table(influence))
    return 0


def _extent(imatrix: Imatrix) -> str:
    entries = figures.counted(len(imatrix.entries), "entry", "entries")
    return f"{entries}, {figures.counted(imatrix.chunk_count, 'chunk')} of {imatrix.chunk_size} tokens"


def account_line(run: MomentsRun) -> str:
    """What the second moments will take, printed before anything runs."""
    account = run.account
    memory, disk, file = figures.memory(account.memory), figures.size(account.disk), figures.size(account.file)
    return (
        f"second moments of {account.inputs} inputs: {memory} of memory while they are collected, {disk} on the disk "
        f"until they are written, {file} in {run.wanted.out}"
    )


def _moments_line(path: Path) -> str:
    """What was written, and which inputs saw too few tokens."""
    from surgeon.moments.files import load_moments
    from surgeon.moments.thresholds import ENOUGH, FEWEST

    moments = load_moments(path)
    with moments.file:
        ratios = [float(moments.tokens_per_column(one).min()) for one in moments.inputs.values()]
    text = f"{path}: {len(moments.inputs)} inputs of {len(moments.users)} weights, {figures.size(path.stat().st_size)}"
    too_few, few = sum(ratio < FEWEST for ratio in ratios), sum(FEWEST <= ratio < ENOUGH for ratio in ratios)
    if too_few:
        text += f"; {too_few} saw fewer than {FEWEST} tokens a column and will not be used"
    if few:
        text += f"; {few} saw fewer than {ENOUGH} tokens a column: a longer text is better"
    return text


def _expert_lines(imatrix: Imatrix) -> list[str]:
    """How many experts the text did not reach, if there are any experts."""
    from surgeon.imatrix.coverage import experts_with_data

    found = experts_with_data(imatrix)
    few = {name: (seen, n) for name, (seen, n) in found.items() if seen < n}
    if not few:
        return [f"all experts of {len(found)} tensors were called"] if found else []
    name, (seen, n) = min(few.items(), key=lambda item: item[1][0] / item[1][1])
    return [
        f"in {len(few)} of {len(found)} expert tensors some experts were never called, in {name} only {seen} of {n} "
        "were: a longer text is better"
    ]


def _tell_partial(wanted: Collection) -> None:
    if wanted.partial.exists():
        how = "the same command goes on from there" if wanted.block_chunks else "--resume continues it"
        tell([f"surgeon: what was collected is in {wanted.partial}; {how}"], sys.stderr)
