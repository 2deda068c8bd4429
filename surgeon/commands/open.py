"""`surgeon MODEL.gguf`: the screen."""

from __future__ import annotations

import gc
from pathlib import Path

from surgeon.commands.engine_options import add_llama_options
from surgeon.commands.parser import Parser
from surgeon.streams import require_terminal


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon open",
        description="The screen on a model: look, mark, choose types, write.",
    )
    parser.add_argument("model", type=Path, help="a GGUF file, or any shard of a set")
    parser.add_argument("--imatrix", type=Path, metavar="F", help="importance matrix, GGUF or .dat")
    parser.add_argument("--recipe", type=Path, metavar="R", help="start with this plan instead of the saved one")
    parser.add_argument("--light", action="store_true", default=None, help="colours for a light terminal")
    parser.add_argument("--dark", dest="light", action="store_false", help="colours for a dark terminal (the default)")
    parser.add_argument("--ascii", action="store_true", default=None, help="draw with ASCII characters only")
    parser.add_argument("--no-mouse", dest="mouse", action="store_false", default=None, help="do not capture the mouse")
    add_llama_options(parser.add_argument_group("for measurements on the screen"), default=None)
    options = parser.parse_args(arguments)
    require_terminal(str(options.model))

    gc.disable()  # nothing of what is loaded now is garbage: a tenth of the start goes into looking; `run` enables it
    from surgeon.tui.app import run

    theme = None if options.light is None else "light" if options.light else "dark"
    return run(
        options.model,
        options.imatrix,
        options.recipe,
        mouse=options.mouse,
        ascii=options.ascii,
        theme=theme,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        llama_lib=options.llama_lib,
    )
