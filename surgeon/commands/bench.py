"""`surgeon bench`: tokens per second, with llama-bench's tests and names."""

from __future__ import annotations

import argparse
import os
from typing import Any

from surgeon.commands.options.engine_options import (
    add_engine_options,
    engine_of,
    log_shown,
    positive,
)
from surgeon.commands.options.parser import Parser
from surgeon.commands.options.recording import add_journal_options, recording_of
from surgeon.commands.printing.progress_line import ProgressLine
from surgeon.commands.printing.text_table import table
from surgeon.errors import UsageError
from surgeon.figures import size
from surgeon.json_text import json_text

DESCRIPTION = """Tokens per second as llama-bench measures them: pp N processes a prompt of N tokens, tg N generates N
tokens, -pg does both in one go. Mean ± standard deviation over the repetitions, and the best of them: on a busy machine
trust only the best."""


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _pair(text: str) -> tuple[int, int]:
    prompt, generated = _numbers(text)
    return prompt, generated


def _parser() -> Parser:
    parser = Parser(prog="surgeon bench", description=DESCRIPTION)
    add_engine_options(parser)
    parser.add_argument("-p", "--n-prompt", type=_numbers, default=[512], metavar="N[,N]", help="prompt tokens (512)")
    parser.add_argument("-n", "--n-gen", type=_numbers, default=[128], metavar="N[,N]", help="generated tokens (128)")
    parser.add_argument("-pg", type=_pair, action="append", default=[], metavar="PP,TG", help="prompt, then generation")
    parser.add_argument("-d", "--n-depth", type=int, default=0, metavar="N", help="tokens already in the cache (0)")
    parser.add_argument("-r", "--repetitions", type=positive, default=5, metavar="N", help="of each test (5)")
    parser.add_argument("-b", "--batch-size", type=positive, default=2048, metavar="N")
    parser.add_argument("-ub", "--ubatch-size", type=positive, default=512, metavar="N")
    add_journal_options(parser)
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    tests = [(n, 0) for n in options.n_prompt if n > 0]
    tests += [(0, n) for n in options.n_gen if n > 0]
    tests += [pair for pair in options.pg if sum(pair) > 0]
    if not tests:
        raise UsageError("nothing to measure: -p, -n or -pg above 0")
    recording = recording_of(options)
    values = _measure(tests, options)
    print(json_text(values) if options.json else _report(values))
    if recording is not None:
        recording.keep(values)
    return 0


def _report(values: dict[str, Any]) -> str:
    rows = [
        [test["test"], f"{test['mean']:.2f} ± {test['deviation']:.2f}", f"{test['best']:.2f}"]
        for test in values["tests"]
    ]
    return (
        f"{values['description']}, {size(values['nbytes'])}, {values['n_params'] / 1e9:.2f} B parameters\n"
        f"{values['engine']}, {values['threads']} threads, load {_load()}\n"
        f"{table(['test', 't/s', 'best'], rows)}"
    )


def _measure(tests: list[tuple[int, int]], options: argparse.Namespace) -> dict[str, Any]:
    from surgeon.engine.client import EngineRun
    from surgeon.engine.protocol import BenchJob, Finished, Loaded

    pairs = [list(test) for test in tests]
    job = BenchJob(options.model, pairs, options.repetitions, options.n_depth, options.batch_size, options.ubatch_size)
    run = EngineRun(engine_of(options), job)
    values: dict[str, Any] = {"model": options.model}
    with log_shown(options, run):
        for message in ProgressLine("bench", "runs").watch(run.messages()):
            if isinstance(message, Loaded):
                values |= {
                    "engine": message.engine, "description": message.description,
                    "nbytes": message.nbytes, "n_params": message.n_params,
                }  # fmt: skip
            elif isinstance(message, Finished):
                values |= message.values
    return values


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
