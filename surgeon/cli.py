"""The command line: finds the sub-command and imports only that.

`surgeon --help` must answer at once, so nothing here imports numpy, numba or textual.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

from surgeon import __version__, streams
from surgeon.errors import SurgeonError, UsageError
from surgeon.terminal import escaping, message, tell

# name -> (module, one line for --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "open": ("surgeon.commands.open", "the screen on MODEL.gguf (the default when a file is named)"),
    "demo": ("surgeon.commands.demo", "the screen on a copy of the bundled small model, imatrix included"),
    "convert": ("surgeon.commands.convert", "a published checkpoint (safetensors) to GGUF (extra `convert`)"),
    "show": ("surgeon.commands.show", "the layer/tensor tree of a model, once"),
    "diff": ("surgeon.commands.diff", "what two models differ in: types, sizes, metadata, errors"),
    "stats": ("surgeon.commands.stats", "statistics of an imatrix, as llama-imatrix --show-statistics"),
    "quantize": ("surgeon.commands.quantize", "llama-quantize's options, word for word"),
    "apply": ("surgeon.commands.apply", "run a recipe: surgeon apply RECIPE IN OUT"),
    "export": ("surgeon.commands.export", "the llama-quantize command that would do what a recipe does"),
    "verify": ("surgeon.commands.verify", "check the structure and the numbers of a GGUF"),
    "imatrix": ("surgeon.commands.imatrix", "collect an importance matrix (extra `engine`)"),
    "fit": ("surgeon.commands.fit", "the types that lose least within a size (extra `engine`)"),
    "perplexity": ("surgeon.commands.perplexity", "perplexity, KL divergence and tasks (extra `engine`)"),
    "bench": ("surgeon.commands.bench", "tokens per second (extra `engine`)"),
    "prune-scan": ("surgeon.commands.prune_scan", "measured damage of removing each layer (extra `engine`)"),
    "expert-scan": ("surgeon.commands.expert_scan", "measured damage of pruning experts (extra `engine`)"),
    "heal": ("surgeon.commands.heal", "refit matrices to make up for pruned layers (extra `engine`)"),
    "journal": ("surgeon.commands.journal", "the trials of a model: list, compare, export as Markdown"),
    "doctor": ("surgeon.commands.doctor", "what this machine can do: kernels, llama.cpp, devices, folders"),
    "cache": ("surgeon.commands.cache", "where the compiled kernels are; --clear removes them"),
}


_HELP, _VERSION = ("-h", "--help", "help"), ("-V", "--version")
_NESTED = "a file named here is nested too deeply to be read"


def usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: surgeon MODEL.gguf [--imatrix F] [--recipe R]",
            "       surgeon COMMAND [options]      (see surgeon COMMAND --help)",
            "",
            "Operate on large language models in the terminal.",
            "",
            "commands:",
            *lines,
        ]
    )


def _refuse_mistyped(word: str) -> None:
    """Raises UsageError when `word` can only be meant as a command: no option, no file, no path, no suffix."""
    if word.startswith("-") or os.path.lexists(word) or os.path.splitext(word)[1] or os.sep in word:
        return
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "surgeon --help lists the commands"
    raise UsageError(f"{word}: neither a file nor a command; {hint}")


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code (0 done, 1 failed, 2 usage, 130 cancelled)."""
    if not arguments or arguments[0] in _HELP:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in _VERSION:
        print(f"surgeon {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        _refuse_mistyped(name)
        name, rest = "open", arguments
    module = importlib.import_module(COMMANDS[name][0])
    code: int = module.main(rest)
    return code


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    # Loading modules and headers makes objects by the ten thousand and drops none; with Python's threshold of 700 they
    # are walked over and over, a twentieth of the time of `surgeon show`.
    gc.set_threshold(10_000)
    arguments = sys.argv[1:]
    streams.install()
    if arguments and arguments[0] not in (*_HELP, *_VERSION):  # those are over before a signal could come
        from surgeon import signals

        signals.install()
    with escaping():
        code = _run_telling(arguments)
    lost = streams.undelivered()
    if lost and code == 0:
        print(f"surgeon: stdout: cannot be written: {lost}", file=sys.stderr)
        return 1
    return code


def _run_telling(arguments: list[str]) -> int:
    """`run`, with every way to fail as one line on stderr and an exit code."""
    try:
        return run(arguments)
    except SystemExit as end:  # argparse: --help, or a wrong option
        return end.code if isinstance(end.code, int) else 1
    except SurgeonError as error:
        tell([message(f"surgeon: {error}")], sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        from surgeon.signals import Terminated, exit_code

        if isinstance(error, Terminated):
            print(f"surgeon: ended by {error}", file=sys.stderr)
            return exit_code(error.number)
        print("surgeon: cancelled", file=sys.stderr)
        return 130
    except OSError as error:
        tell([f"surgeon: {_os_reason(error)}"], sys.stderr)
        return 1
    except (MemoryError, RecursionError) as error:
        what = "not enough memory; close other programs or try less" if isinstance(error, MemoryError) else _NESTED
        tell([f"surgeon: {' '.join(arguments)[:200]}: {what}"], sys.stderr)
        return 1


def _os_reason(error: OSError) -> str:
    """What the system refused, with the file where it names one."""
    names = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{names}: {reason}" if names else f"{reason}; check the disk and the files named in the command"
