"""`surgeon quantize`: llama-quantize's command line."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    from surgeon.commands.headless import run_job
    from surgeon.llama_quantize.arguments import OptionError
    from surgeon.llama_quantize.options import parse_job
    from surgeon.llama_quantize.usage import SYNTAX, usage

    if not arguments or any(word in ("-h", "--help") for word in arguments[:1]):
        print(usage())
        return 0 if arguments else 1
    try:
        job = parse_job(arguments)
    except OptionError:
        print(f"usage: {SYNTAX}", file=sys.stderr)
        raise
    return run_job(job)
