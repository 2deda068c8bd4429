"""What the commands that run llama.cpp share: its options, the progress line, the log on demand."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import SurgeonError
from surgeon.machine import MOST_THREADS
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.engine.client import EngineRun
    from surgeon.engine.protocol import Engine
    from surgeon.fleet.cluster import Fleet


def add_engine_options(parser: argparse.ArgumentParser, *, model_required: bool = True) -> None:
    """`-m -t -ngl --llama-lib --show-log --json`, named as llama.cpp's tools name them."""
    parser.add_argument("-m", "--model", required=model_required, metavar="MODEL", help="the GGUF to run")
    add_llama_options(parser, default=0)
    parser.add_argument("--show-log", action="store_true", help="llama.cpp's own log on stderr at the end")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def add_llama_options(parser: argparse._ActionsContainer, *, default: int | None) -> None:
    """`-t -ngl --llama-lib`; `default` stands where a number was not given."""
    parser.add_argument(
        "-t", "--threads", type=int, default=default, metavar="N",
        help="threads for llama.cpp (default: all cores)",
    )  # fmt: skip
    parser.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", type=int, default=default, metavar="N",
        help="layers to offload, where this llama.cpp has a GPU back end (default 0)",
    )  # fmt: skip
    parser.add_argument("--llama-lib", metavar="DIR", help="a llama.cpp build to use (or $LLAMA_CPP_LIB_DIR)")


def add_scheduler_option(parser: argparse._ActionsContainer, what: str = "measure on") -> None:
    """`--scheduler`."""
    parser.add_argument(
        "--scheduler", metavar="ADDRESS",
        help=f"{what} the workers of this Dask scheduler (extra `fleet`; default: the config file's; none: not)",
    )  # fmt: skip


@contextmanager
def fleet_of(
    given: str | None, engine: Engine, cancelled: threading.Event | None = None, *, needs_engine: bool = True
) -> Iterator[Fleet | None]:
    """The fleet that `--scheduler` or the config file names; None for this machine alone. Raises FleetError."""
    from surgeon.fleet.settings import scheduler_address

    address = scheduler_address(given)
    if address is None:
        yield None
        return
    from surgeon.fleet.cluster import Fleet

    with Fleet(address, engine, cancelled, needs_engine=needs_engine) as fleet:
        tell([f"surgeon: {fleet.title} at {address}{': ' + fleet.build if fleet.build else ''}"], sys.stderr)
        yield fleet


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """`-c -b -ub --chunks`."""
    parser.add_argument("-c", "--ctx-size", type=positive, default=512, metavar="N", help="tokens per chunk (512)")
    parser.add_argument("-b", "--batch-size", type=positive, default=2048, metavar="N", help="tokens at once (2048)")
    parser.add_argument("-ub", "--ubatch-size", type=positive, default=512, metavar="N", help="per graph (512)")
    parser.add_argument("--chunks", type=chunks, default=-1, metavar="N", help="at most N chunks (-1: all)")


def positive(text: str) -> int:
    """A number above zero; argparse says what it was instead."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def chunks(text: str) -> int:
    """A number of chunks; below zero all of them."""
    number = int(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must not be 0")
    return number


def engine_of(options: argparse.Namespace) -> Engine:
    """The Engine message for these options. Raises SurgeonError where the model is nothing that llama.cpp could run."""
    from surgeon.model.kinds import refuse_without_embeddings, refuse_without_text

    if getattr(options, "model", None):
        embeds = getattr(options, "embedding", None) is not None
        (refuse_without_embeddings if embeds else refuse_without_text)(options.model)
    from surgeon.engine.protocol import Engine

    return Engine(options.llama_lib, min(options.threads, MOST_THREADS), options.gpu_layers)


@contextmanager
def log_shown(options: argparse.Namespace, run: EngineRun) -> Iterator[None]:
    """Print the run's log on stderr at the end, however it ends, if it was asked for."""
    try:
        yield
    finally:
        if options.show_log:
            print(run.log_text(), file=sys.stderr)


def require_file(path: str) -> str:
    """The path, if it is a file. Raises SurgeonError."""
    if not Path(path).is_file():
        raise SurgeonError(f"{path}: no such file")
    return path
