"""`surgeon cache`: where the compiled kernels are, and how to be rid of them."""

from __future__ import annotations

import argparse


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="surgeon cache",
        description="Where the compiled kernels are kept. They compile again when they are needed.",
        epilog="SURGEON_CACHE_DIR in the environment chooses another folder.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them")
    options = parser.parse_args(arguments)

    from humanize import naturalsize

    import surgeon_kernels

    folder = surgeon_kernels.cache_directory()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    if options.clear:
        surgeon_kernels.clear_cache()
        print(f"{folder}: removed {len(sizes)} files, {naturalsize(sum(sizes))}")
    else:
        print(f"{folder}: {len(sizes)} files, {naturalsize(sum(sizes))}")
    return 0
