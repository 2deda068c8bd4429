"""Every kind of input a stranger may hand the program: what is done with it, and what may come of it.

    python tests/fuzz/kinds_of_input.py [KIND ...] --count 100000 --seed 1

runs long; the suite runs a few hundred of each (test_fuzz.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "fuzz")]

import binary_inputs
import metadata_inputs
import text_inputs

from surgeon.anatomy import layer_roles
from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.child.evaluation.task_files import multiple_choice
from surgeon.engine.frames import ProtocolError, read_message
from surgeon.errors import SurgeonError, UsageError
from surgeon.fit.vram import Card, cache_bytes
from surgeon.healing.heal_file import load_heal
from surgeon.imatrix.coverage import coverage, experts_with_data
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.influence import load_influence
from surgeon.imatrix.statistics import layer_statistics, tensor_statistics
from surgeon.llama_quantize.arguments import read_type_file
from surgeon.llama_quantize.options import parse_job
from surgeon.model.model import load_model
from surgeon.model.verification import check_numbers, structure_problems
from surgeon.moments.files import load_moments
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import read_recipe, to_toml
from surgeon.plan.regex_ecma import compile_pattern
from surgeon.resolve.resolve import resolve
from surgeon.session.filters import parse_filter
from surgeon.session.session import Session
from surgeon.session.typed_edits import parse_command
from surgeon.trials.journal import Journal
from surgeon.tui.config import load_config
from surgeon.write import resume_log

SECONDS = 10.0  # no single input may take longer
NAMES = [f"blk.{layer}.{part}.weight" for layer in range(4) for part in ("attn_q", "ffn_down_exps", "ffn_norm")]
_FOLDER = tempfile.TemporaryDirectory(prefix="surgeon-fuzz-")
FOLDER = Path(_FOLDER.name)


def _metadata(rng: random.Random) -> None:
    """`resolve` never raises, whatever the metadata; nor does what the screen and verify ask."""
    model, plan = metadata_inputs.model(rng), metadata_inputs.plan(rng)
    imatrix = metadata_inputs.imatrix(rng, model)
    assert resolve(model, plan, imatrix).total_bytes >= 0
    structure_problems(model)
    layer_roles(model)
    if imatrix is not None:
        coverage(model, imatrix)
        experts_with_data(imatrix, model)
    with contextlib.suppress(UsageError):
        cache_bytes(model, Card(0))


def _one_line(act: Callable[[], object]) -> None:
    """Either it works, or the user gets one line."""
    try:
        act()
    except SurgeonError as error:
        line = str(error)
    else:
        return
    assert "\n" not in line, line
    assert len(line) < 3000, line


def _recipe(rng: random.Random) -> None:
    def act() -> None:
        to_toml(read_recipe(text_inputs.mutated(rng, text_inputs.RECIPE), FOLDER))

    _one_line(act)


def _config(rng: random.Random) -> None:
    path = FOLDER / "config.toml"
    path.write_bytes(text_inputs.mutated(rng, text_inputs.CONFIG).encode("utf-8", "surrogatepass"))
    assert all("\n" not in problem for problem in load_config(path).problems)


def _trials(rng: random.Random) -> None:
    """A line that is bad takes no other with it."""
    path = FOLDER / "trials.jsonl"
    text = text_inputs.mutated(rng, text_inputs.JOURNAL)
    intact = '"id": "9-z", "when": "2026", "label": "kept", "size": 1, "source_size": 1}'
    path.write_bytes((text + '\n{"event": "trial", ' + intact + "\n").encode("utf-8", "surrogatepass"))
    journal = Journal(path)
    assert "9-z" in {trial.id for trial in journal.trials()}
    _one_line(lambda: journal._require("9-z"))


def _resume_log(rng: random.Random) -> None:
    path = FOLDER / "resume"
    path.write_bytes(text_inputs.resume_log(rng))
    resume_log.read(path)


def _multiple_choice(rng: random.Random) -> None:
    path = FOLDER / "tasks.bin"
    path.write_bytes(text_inputs.multiple_choice(rng))
    _one_line(lambda: multiple_choice(str(path), 0))


def _written(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.unlink(missing_ok=True)  # a new inode: what was read before is known by it
    path.write_bytes(data)
    return path


def _gguf(rng: random.Random) -> None:
    """A model that is opened is shown, checked and planned."""

    def act() -> None:
        with (model := load_model(path)).file:
            structure_problems(model)
            for _ in check_numbers(model.file):
                pass
            resolve(model, Plan(file_type="Q4_K_M"))

    path = _written("model.gguf", binary_inputs.mutated(rng, binary_inputs.model()))
    _one_line(act)


def _imatrix(rng: random.Random) -> None:
    """Entry by entry: what cannot be used is named, the rest is shown."""
    old = rng.random() < 0.4
    path = _written("im", binary_inputs.mutated(rng, binary_inputs.old_imatrix() if old else _good_imatrix()))

    def act() -> None:
        imatrix = load_imatrix(path, judged=True)
        layer_statistics(tensor_statistics(imatrix))
        experts_with_data(imatrix)
        for name in imatrix.entries:
            assert (imatrix.weights(name) >= 0).all()

    def influence() -> None:
        found = load_influence(path)
        if found is not None and len(found.layers):
            found.block_influence.sum()

    _one_line(act)
    if not old:
        _one_line(influence)


def _good_imatrix() -> bytes:
    return binary_inputs.imatrix(FOLDER)


def _moments(rng: random.Random) -> None:
    path = _written("moments", binary_inputs.mutated(rng, binary_inputs.moments(FOLDER)))

    def act() -> None:
        with (moments := load_moments(path)).file:
            assert moments.as_imatrix.entries
            for one in moments.inputs.values():
                moments.sums(one, 0, 0)

    _one_line(act)


def _heal(rng: random.Random) -> None:
    path = _written("heal", binary_inputs.mutated(rng, binary_inputs.heal(FOLDER)))

    def act() -> None:
        with (heal := load_heal(path)).model.file:
            heal.origin.summary()
            assert isinstance(heal.origin.worse, tuple)

    _one_line(act)


def _base(rng: random.Random) -> None:
    path = _written("base.kld", binary_inputs.mutated(rng, binary_inputs.base(FOLDER)))
    _one_line(lambda: BaseFile(str(path)).rows(0, 0, 1))


def _message(rng: random.Random) -> None:
    """What the engine's child writes is read, or it is not ours."""
    stream = io.BytesIO(binary_inputs.mutated(rng, binary_inputs.messages()))
    with contextlib.suppress(ProtocolError):
        while read_message(stream) is not None:
            pass


def _command(rng: random.Random) -> None:
    """`:` on the screen, the words of `surgeon quantize`, and a file of rules."""
    words = text_inputs.words(rng)
    path = _written("rules", "\n".join(words).encode("utf-8", "surrogatepass"))
    acts: tuple[Callable[[], object], ...] = (
        lambda: parse_command(" ".join(words), _session()),
        lambda: parse_job(words),
        lambda: read_type_file(str(path)),
    )
    for act in acts:
        with contextlib.suppress(SurgeonError):  # which quotes the words; what is printed is cut and escaped
            act()


@cache
def _session() -> Session:
    return Session(load_model(_written("whole.gguf", binary_inputs.model())))


def _pattern(rng: random.Random) -> None:
    text = text_inputs.pattern(rng)
    _one_line(lambda: [compile_pattern(text).search(name) for name in NAMES])
    with contextlib.suppress(ValueError):
        parse_filter(text)


KINDS: dict[str, Callable[[random.Random], None]] = {
    "metadata": _metadata,
    "recipe": _recipe,
    "config": _config,
    "trials": _trials,
    "resume-log": _resume_log,
    "multiple-choice": _multiple_choice,
    "pattern": _pattern,
    "gguf": _gguf,
    "imatrix": _imatrix,
    "moments": _moments,
    "heal": _heal,
    "base": _base,
    "message": _message,
    "command": _command,
}


class HangError(Exception):
    """An input that took too long."""


def tried(kind: str, seed: int) -> str:
    """One input; '' when all is well, else what went wrong."""

    def hang(*_: object) -> None:
        raise HangError(f"more than {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        KINDS[kind](random.Random(seed))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{kind} {seed}: {type(error).__name__}: {str(error)[:200]} ({place.filename}:{place.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = 0
    for kind in options.kinds:
        began, wrong = time.monotonic(), 0
        for seed in range(options.seed, options.seed + options.count):
            text = tried(kind, seed)
            if text:
                wrong += 1
                print(ascii(text)[1:-1], flush=True)
        failed += wrong
        print(f"{kind}: {options.count} inputs, {wrong} failures, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
