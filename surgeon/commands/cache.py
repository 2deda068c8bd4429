"""`surgeon cache`: where the compiled kernels are, and how to be rid of them."""

from __future__ import annotations

from surgeon.commands.options.parser import Parser
from surgeon.figures import counted, size


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon cache",
        description="Where the compiled kernels are kept. They are compiled again when needed.",
        epilog="SURGEON_CACHE_DIR in the environment chooses another folder.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them")
    options = parser.parse_args(arguments)

    import surgeon_kernels
    from surgeon_kernels.cache_folders import refusals

    folder = surgeon_kernels.cache_directory()
    if folder is None:
        print("no folder to keep them, so kernels are compiled anew in every process; set SURGEON_CACHE_DIR")
        print(*refusals(), sep="\n")
        return 0
    everything = folder.parent  # kernels of other versions and processors lie beside this version's
    if options.clear:
        print(f"{everything}: removed {size(surgeon_kernels.clear_cache())}")
        return 0
    sizes = [path.stat().st_size for path in everything.rglob("*") if path.is_file()] if everything.exists() else []
    print(f"{everything}: {counted(len(sizes), 'file')}, {size(sum(sizes))}; this version's are in {folder.name}")
    return 0
