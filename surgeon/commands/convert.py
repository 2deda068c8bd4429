"""`surgeon convert`: from a published checkpoint to a GGUF."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.parser import Parser
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.write.conversion import Conversion

DESCRIPTION = """Convert a published checkpoint (config.json and safetensors in FOLDER) to a GGUF with llama.cpp's own
converter, the extra `convert`. Nothing is downloaded unless --remote asks for it."""


def main(arguments: list[str]) -> int:
    from surgeon.write.conversion import OUT_TYPES, Conversion

    parser = Parser(prog="surgeon convert", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the checkpoint; with --remote a repository's name")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="default: FOLDER-TYPE.gguf beside FOLDER")
    parser.add_argument("--outtype", choices=OUT_TYPES, default="auto", help="type of the weights (auto)")
    parser.add_argument("--mmproj", action="store_true", help="the vision or audio part instead of the text model")
    parser.add_argument("--remote", action="store_true", help="FOLDER is a Hugging Face repository to download from")
    parser.add_argument("--overwrite", action="store_true", help="overwrite OUT if it exists")
    options = parser.parse_args(arguments)
    wanted = Conversion(options.folder, options.out, options.outtype, options.mmproj, options.remote)
    target = run(wanted, replace=options.overwrite)
    tell([f"{target}: {target.stat().st_size:,} bytes"])
    return 0


def run(wanted: Conversion, *, replace: bool = False) -> Path:
    """Convert with progress on stderr; returns where the GGUF is. Raises SurgeonError, KeyboardInterrupt."""
    from surgeon.commands.printing.progress_line import StandingLine
    from surgeon.figures import size
    from surgeon.measure.progress import Standing
    from surgeon.write.conversion import convert
    from surgeon.write_guard import Permit

    nbytes = wanted.estimated_bytes if wanted.folder.is_dir() else 0
    needed = f", about {size(nbytes)}" if nbytes else ""
    tell([f"converting to {wanted.target}{needed}"], sys.stderr)
    items = convert(wanted, Permit(replace=replace))
    for _ in StandingLine().watch(Standing("converting", 0, 1, i.part, "", {}, i.seconds_left) for i in items):
        pass
    return wanted.target
