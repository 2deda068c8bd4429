"""`surgeon MODEL.gguf`: the screen."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from surgeon.commands.options.engine_options import add_llama_options, add_scheduler_option
from surgeon.commands.options.parser import Parser
from surgeon.errors import Cancelled, SurgeonError
from surgeon.streams import require_terminal


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon open",
        description="The screen on a model: look, mark, choose types, write.",
    )
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL",
        help="a GGUF file, any shard of a set, or a checkpoint's folder; of several, Ctrl+T shows the next",
    )  # fmt: skip
    parser.add_argument("--imatrix", type=Path, metavar="F", help="importance matrix of the first, GGUF or .dat")
    parser.add_argument("--recipe", type=Path, metavar="R", help="start with this plan instead of the saved one")
    parser.add_argument("--light", action="store_true", default=None, help="colours for a light terminal")
    parser.add_argument("--dark", dest="light", action="store_false", help="colours for a dark terminal (the default)")
    parser.add_argument("--ascii", action="store_true", default=None, help="draw with ASCII characters only")
    parser.add_argument("--no-mouse", dest="mouse", action="store_false", default=None, help="do not capture the mouse")
    measured = parser.add_argument_group("for measurements on the screen")
    add_llama_options(measured, default=None)
    add_scheduler_option(measured, "measure and write on")
    options = parser.parse_args(arguments)
    model, *others = [_converted(path) if path.is_dir() else path for path in options.models]
    require_terminal(str(model))

    gc.disable()  # nothing of what is loaded now is garbage: a tenth of the start goes into looking; `run` enables it
    from surgeon.tui.app import run

    theme = None if options.light is None else "light" if options.light else "dark"
    return run(
        model,
        options.imatrix,
        options.recipe,
        others=others,
        mouse=options.mouse,
        ascii=options.ascii,
        theme=theme,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        llama_lib=options.llama_lib,
        scheduler=options.scheduler,
    )


def _converted(folder: Path) -> Path:
    """The GGUF of a checkpoint: converted now, if the user agrees. Raises SurgeonError for any other folder."""
    from surgeon.commands.convert import run as convert
    from surgeon.figures import size
    from surgeon.write.conversion import Conversion, is_checkpoint

    if not is_checkpoint(folder):
        raise SurgeonError(f"{folder}: is a folder without a checkpoint; name a .gguf file")
    wanted = Conversion(folder)
    if wanted.target.exists():
        return wanted.target
    if not sys.stdin.isatty():
        raise SurgeonError(f"{folder}: is a checkpoint; convert it first: surgeon convert {folder}")
    question = f"{folder} is a checkpoint. Convert it to {wanted.target} ({size(wanted.estimated_bytes)})? [y/N] "
    if input(question).strip().lower() not in ("y", "yes"):
        raise Cancelled("nothing was converted")
    return convert(wanted)
