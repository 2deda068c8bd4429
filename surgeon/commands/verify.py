"""`surgeon verify`: is the file whole, would llama.cpp load it, is every number a number."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.parser import Parser
from surgeon.figures import counted, size
from surgeon.json_text import json_text
from surgeon.terminal import redraw, tell

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.model.model import Model
    from surgeon.model.verification import Checked
    from surgeon.problems import Problem

HELP = """\
checks the structure (header, offsets, overlaps, shards, layer numbers), every number of every tensor (NaN, infinity; of
quantized tensors the scales), and with --imatrix whether the importance matrix fits. For the common architectures keys,
names and shapes of all tensors are compared with what llama.cpp's loader asks for; --load lets llama.cpp load the file.
Exit code 1 when there are errors; warnings and notes leave it at 0.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon verify",
        description="Check the structure and the numbers of a GGUF.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a model, any shard of one, or an importance matrix")
    parser.add_argument("--imatrix", metavar="F", type=Path, help="importance matrix to compare with the model")
    parser.add_argument("--load", action="store_true", help="let llama.cpp load it too (extra `engine`)")
    parser.add_argument("--json", action="store_true", help="the findings as one JSON object")
    options = parser.parse_args(arguments)

    from surgeon.imatrix.files import is_old_format
    from surgeon.model.model import load_model

    if is_old_format(options.file):
        return _verify_old_imatrix(options)
    model = load_model(options.file)
    with model.file:
        problems = list(_problems(model, options.imatrix))
    if options.load:
        problems += _load_problems(options.file)
    failed = any(problem.severity == "error" for problem in problems)
    if options.json:
        print(json_text(as_json(model, problems), indent=1))
    else:
        tell(report(model, problems))
    return 1 if failed else 0


def _problems(model: Model, imatrix: Path | None) -> Iterator[Problem]:
    from surgeon.imatrix.files import load_imatrix
    from surgeon.model.kinds import kind
    from surgeon.model.verification import check_numbers, structure_problems

    yield from structure_problems(model)
    if kind(model.file) == "imatrix":
        yield from _entry_problems(load_imatrix(model.file.path, judged=True))
    if imatrix:
        yield from _imatrix_problems(model, imatrix)
    yield from with_progress(check_numbers(model.file))


def _load_problems(path: Path) -> list[Problem]:
    """What llama.cpp itself says. Raises EngineMissing where there is none."""
    from surgeon.engine.client import EngineRun
    from surgeon.engine.errors import EngineMissing
    from surgeon.engine.protocol import BenchJob, Engine, Loaded
    from surgeon.errors import SurgeonError
    from surgeon.problems import Problem

    try:
        with EngineRun(Engine(threads=1), BenchJob(str(path), [], 1)) as run:
            for _ in run.until(Loaded):
                pass
    except EngineMissing:
        raise
    except SurgeonError as error:
        return [Problem("error", str(error))]
    return []


def _imatrix_problems(model: Model, path: Path) -> Iterator[Problem]:
    from surgeon.imatrix.coverage import coverage, experts_with_data
    from surgeon.imatrix.files import load_imatrix
    from surgeon.problems import Problem

    imatrix = load_imatrix(path, judged=True)
    yield from _entry_problems(imatrix)
    found = coverage(model, imatrix)
    unseen = [(name, seen, n) for name, (seen, n) in experts_with_data(imatrix, model).items() if seen < n]
    if unseen:
        listed = ", ".join(f"{name} ({seen} of {n} have data)" for name, seen, n in unseen[:3])
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        text = f"{path.name}: experts never called in calibration in {len(unseen)} tensors: {listed}{more}"
        yield Problem("warning", f"{text}; collect over more text before quantizing them to few bits")
    for misfit in found.misfits:
        text = f"{path.name}: {misfit.name} has {misfit.found} values, the tensor needs {misfit.expected}"
        yield Problem("error", f"{text}; collect the importance matrix from this model")
    if found.missing:
        count = f"{len(found.missing)} tensors have" if len(found.missing) > 1 else "1 tensor has"
        yield Problem("warning", f"{path.name}: {count} no entry, first {found.missing[0]}")
    if found.orphans:
        count = f"{len(found.orphans)} entries are" if len(found.orphans) > 1 else "1 entry is"
        yield Problem("note", f"{path.name}: {count} for no tensor, first {found.orphans[0]}")


def _entry_problems(imatrix: Imatrix) -> Iterator[Problem]:
    from surgeon.problems import Problem

    for why in imatrix.bad.values():
        yield Problem("error", f"{imatrix.path.name}: {why}; collect it again, or leave it out with --exclude-weights")


def _verify_old_imatrix(options: argparse.Namespace) -> int:
    """An importance matrix in the old format, which is not a GGUF."""
    from surgeon.imatrix.files import load_imatrix

    imatrix = load_imatrix(options.file, judged=True)
    problems = list(_entry_problems(imatrix))
    count = len(imatrix.entries) + len(imatrix.bad)
    if options.json:
        document = {"file": str(options.file), "version": None, "tensors": count, "bytes": options.file.stat().st_size}
        print(json_text({**document, "ok": not problems, "problems": _plain(problems)}, indent=1))
    else:
        entries = counted(count, "entry", "entries")
        tell([f"{options.file}: importance matrix in the old format, {entries}", *_lines(problems)])
    return 1 if problems else 0


def with_progress(steps: Iterator[Checked | Problem]) -> Iterator[Problem]:
    """The problems among `steps`; the progress goes to stderr when that is a terminal, at most ten times a second."""
    from surgeon.problems import Problem

    terminal, shown = sys.stderr.isatty(), 0.0
    for step in steps:
        if isinstance(step, Problem):
            yield step
        elif terminal and time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            share = 100 * step.done_bytes / max(step.total_bytes, 1)
            redraw(sys.stderr, f"{share:5.1f} %  {step.tensor:.60}")
    if terminal:
        redraw(sys.stderr, "")


def report(model: Model, problems: list[Problem]) -> Iterator[str]:
    file = model.file
    shards = f" in {len(file.paths)} shards" if len(file.paths) > 1 else ""
    yield f"{file.path}: GGUF v{file.version}, {counted(len(file.tensors), 'tensor')}{shards}, {size(file.nbytes)}"
    yield from _lines(problems)


def _lines(problems: list[Problem]) -> Iterator[str]:
    for problem in problems:
        yield f"{problem.severity}: {problem.text}"
    errors = sum(problem.severity == "error" for problem in problems)
    yield f"{errors} error{'' if errors == 1 else 's'}" if errors else "ok"


def as_json(model: Model, problems: list[Problem]) -> dict[str, object]:
    """file, version, tensors (count), bytes, ok, problems (severity, text)."""
    return {
        "file": str(model.file.path),
        "version": model.file.version,
        "tensors": len(model.file.tensors),
        "bytes": model.file.nbytes,
        "ok": not any(problem.severity == "error" for problem in problems),
        "problems": _plain(problems),
    }


def _plain(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"severity": problem.severity, "text": problem.text} for problem in problems]
