"""Kills, and fails, every way to write a file at chosen file calls, and tells what it left, for test_file_faults.py.

file_faults.py MODEL FOLDER EVERY WAY...: for each way a child process writes into FOLDER, first undisturbed and
counting its calls, then killed before every EVERY-th call, then with every EVERY-th call failing by EIO or ENOSPC.
After each kill another child runs the same again. One JSON object per moment is printed.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.engine.child.evaluation.base_file import BaseWriter
from surgeon.engine.child.evaluation.windows import Rows
from surgeon.errors import SurgeonError
from surgeon.imatrix.files import gguf_bytes, save_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, save_recipe
from surgeon.resolve.resolve import resolve
from surgeon.whole_files import written_whole
from surgeon.write import operation
from surgeon.write.operation import WriteOptions, write
from surgeon.write.output_set import Extra
from surgeon.write_guard import REPLACE, Kind, Permit

CALLS = tuple("open write pwrite pread ftruncate fsync link rename replace unlink chmod close".split())


def matrix(value: float) -> Imatrix:
    entry = ImatrixEntry(np.full((1, 64), value, np.float32), np.array([64]))
    return Imatrix(Path("i"), {"blk.0.attn_q.weight": entry}, ("t",), 1, 64)


OLD = {
    "out.gguf": b"GGUF that was there before",
    "out.imatrix": gguf_bytes(matrix(2.0)),
    "out.kld": b"_logits_ that were there before",
    "out.toml": b"# a recipe that was there before\n",
}


def disturb(at: int, act: Callable[[], None]) -> Callable[[], int]:
    """Let every file call count itself and call number `at` do `act` first; returns how many there were."""
    calls, seen = itertools.count(1), [0]

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            seen[0] = next(calls)
            if seen[0] == at:
                act()
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))
    Path.write_bytes = counting(Path.write_bytes)  # type: ignore[method-assign]
    Path.unlink = counting(Path.unlink)  # type: ignore[method-assign]
    real = builtins.open

    def opening(*args: Any, **kwargs: Any) -> Any:
        file = counting(real)(*args, **kwargs)
        return Counted(file, counting) if "w" in str(args[1:2]) else file

    builtins.open = opening
    return lambda: seen[0]


class Counted:
    """An open file whose writes count as calls."""

    def __init__(self, file: Any, counting: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._file = file
        self.write, self.flush = counting(file.write), counting(file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# ------------------------------------------------------------------ the ways to write


def _write(model: Path, folder: Path, options: WriteOptions, extras: tuple[Extra, ...] = ()) -> None:
    operation.TICK, operation.CHECKPOINT_SECONDS = 0.001, 0.0
    resolution = resolve(load_model(model), Plan(file_type="Q8_0"))
    for _ in write(resolution, None, folder / "out.gguf", options, threading.Event(), extras):
        pass


def plain(model: Path, folder: Path) -> None:
    _write(model, folder, WriteOptions(1))


def overwrite(model: Path, folder: Path) -> None:
    _write(model, folder, WriteOptions(1, overwrite=True))


def resume(model: Path, folder: Path) -> None:
    _write(model, folder, WriteOptions(1, resume=True))


def split(model: Path, folder: Path) -> None:
    _write(model, folder, WriteOptions(1, split_max_bytes=500_000))


def imatrix_beside(model: Path, folder: Path) -> None:
    extra = Extra.of(folder / "out.imatrix", Kind.IMATRIX, gguf_bytes(matrix(1.0)))
    _write(model, folder, WriteOptions(1), (extra,))


def imatrix_beside_overwrite(model: Path, folder: Path) -> None:
    extra = Extra.of(folder / "out.imatrix", Kind.IMATRIX, gguf_bytes(matrix(1.0)))
    _write(model, folder, WriteOptions(1, overwrite=True), (extra,))


def imatrix(_model: Path, folder: Path) -> None:
    save_gguf(matrix(1.0), folder / "out.imatrix", REPLACE)


def recipe(_model: Path, folder: Path) -> None:
    save_recipe(Recipe(Plan("Q8_0")), folder / "out.toml", REPLACE)


def base(model: Path, folder: Path) -> None:
    chunks = np.arange(16, dtype=np.int32).reshape(2, 8)
    logits = np.linspace(-3, 3, 4 * 40, dtype=np.float32).reshape(4, 40)
    permit = Permit((model,), replace=True)
    with written_whole(folder / "out.kld", Kind.LOGITS, permit) as name, BaseWriter(str(name), chunks, 40) as writer:
        for chunk in range(2):
            writer.add(Rows(chunk, 4, logits[:3], chunks[chunk, 5:], True))
        writer.finish()


# name: the way, and whether files are there before
WAYS: dict[str, tuple[Callable[[Path, Path], None], bool]] = {
    "plain": (plain, False), "overwrite": (overwrite, True), "resume": (resume, False), "split": (split, False),
    "imatrix beside": (imatrix_beside, False), "imatrix beside, overwrite": (imatrix_beside_overwrite, True),
    "imatrix": (imatrix, True), "recipe": (recipe, True), "base": (base, True),
}  # fmt: skip


def in_child(work: Callable[[], int]) -> tuple[int, str]:
    """Run `work` in a child process: its result, or minus the signal that ended it; the error it told."""
    read, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 255
        try:
            code = work()
        except SurgeonError as error:
            os.write(told, str(error).encode())
            code = 1
        except BaseException as error:
            os.write(told, f"not a line of ours: {error!r}".encode())
        finally:
            os._exit(code)
    os.close(told)
    with os.fdopen(read, "rb") as stream:
        text = stream.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def state(folder: Path) -> dict[str, str]:
    """Target -> 'old' or its hash; what is not there is left out, and so are hidden files."""
    return {
        path.name: "old" if (data := path.read_bytes()) == OLD.get(path.name) else sha256(data).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


def prepare(folder: Path, there: bool, targets: list[str]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name in targets if there else ():
        (folder / name).write_bytes(OLD[name])


def moments_of(name: str, model: Path, folder: Path, every: int) -> Iterator[dict[str, Any]]:
    """First what the undisturbed way makes, then what was found after each moment."""
    way, there = WAYS[name]
    prepare(folder, False, [])
    assert in_child(lambda: way(model, folder) or 0) == (0, "")
    new = state(folder)
    prepare(folder, there, list(new))

    def counted() -> int:
        seen = disturb(0, lambda: None)
        way(model, folder)
        (folder / ".count").write_text(str(seen()))
        return 0

    assert in_child(counted) == (0, "")
    total = int((folder / ".count").read_text())
    yield {"way": name, "new": new, "there": there, "calls": total}
    near_the_end = {*range(max(1, total - 25), total + 1)}
    for moment in sorted({*range(1, total + 1, every), *(near_the_end if every < 100 else ())}):
        for kind in ("kill", "EIO", "ENOSPC"):
            prepare(folder, there, list(new))
            status, error = in_child(lambda kind=kind, moment=moment: disturbed(way, model, folder, kind, moment))
            found: dict[str, Any] = {
                "moment": moment,
                "kind": kind,
                "status": status,
                "error": error,
                "after": state(folder),
            }
            if kind == "kill":
                found["again"], found["trouble"] = in_child(lambda: way(model, folder) or 0)
                found |= {"end": state(folder), "left": [name for name in os.listdir(folder) if name.startswith(".")]}
            yield found


def disturbed(way: Callable[[Path, Path], None], model: Path, folder: Path, kind: str, moment: int) -> int:
    def act() -> None:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, kind)
        raise OSError(code, os.strerror(code))

    disturb(moment, act)
    way(model, folder)
    return 0


def main() -> None:
    model, folder, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    prepare(folder, False, [])
    plain(model, folder)  # loads the kernels, once for all children
    for name in sys.argv[4:] or WAYS:
        for found in moments_of(name, model, folder, every):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
