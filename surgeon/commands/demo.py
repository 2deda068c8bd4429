"""`surgeon demo`: the screen on a working copy of the bundled model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from surgeon.commands.options.parser import Parser
from surgeon.streams import require_terminal
from surgeon.terminal import tell

DEMO = Path(__file__).parent.parent / "demo"
MODEL, IMATRIX = "novels-12M-F16.gguf", "mixed.imatrix.gguf"


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon demo",
        description="The screen on a copy of the bundled small model with its importance matrix.",
        epilog="The copy is removed at the end, unless something was written beside it.",
    )
    parser.parse_args(arguments)
    require_terminal("MODEL")

    from surgeon.tui.app import run

    folder = working_copy()
    try:
        return run(folder / MODEL, folder / IMATRIX, None)
    finally:
        written = sorted(path.name for path in folder.iterdir() if path.name not in (MODEL, IMATRIX))
        if written:
            tell([f"kept {folder} for {', '.join(written)}"])
        else:
            shutil.rmtree(folder, ignore_errors=True)


def working_copy() -> Path:
    """A new temporary folder with copies of the bundled files, to be operated on."""
    folder = Path(tempfile.mkdtemp(prefix="surgeon-demo-"))
    for name in (MODEL, IMATRIX):
        shutil.copyfile(DEMO / name, folder / name)
    return folder
