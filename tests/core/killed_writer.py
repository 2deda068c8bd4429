"""Kills a writer at chosen moments and reports what it left; run as a program by test_operation_faults.py.

killed_writer.py MODEL FOLDER MOMENTS: for each moment a child process writes FOLDER/out.gguf and dies by SIGKILL just
before one of its system calls; the moments are spread over all calls of a whole write, with every one of the last
twenty. Another child then resumes. One JSON object per moment is printed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.write import operation
from surgeon.write.operation import WriteOptions, write

CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "link", "replace", "unlink", "close")
OLD = b"GGUF that was there before"


def count_calls(die_at: int) -> Callable[[], int]:
    """Replace the system calls by ones that count themselves and kill this process before number `die_at`."""
    calls = itertools.count(1)
    seen = [0]

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            seen[0] = next(calls)
            if seen[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))
    return lambda: seen[0]


def write_once(model: Path, out: Path, options: WriteOptions) -> None:
    """One whole write with checkpoints as often as possible."""
    operation.TICK = 0.001
    operation.CHECKPOINT_SECONDS = 0.0
    resolution = resolve(load_model(model), Plan(file_type="Q8_0"))
    for _ in write(resolution, None, out, options, threading.Event()):
        pass


def in_child(work: Callable[[], int]) -> int:
    """Run `work` in a child process; returns its result (0-255), or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def describe(path: Path) -> str:
    """'absent', 'old', or the file's hash."""
    if not path.exists():
        return "absent"
    data = path.read_bytes()
    return "old" if data == OLD else sha256(data).hexdigest()


def try_moment(model: Path, folder: Path, moment: int, overwrite: bool) -> dict[str, Any]:
    """Kill before call number `moment`, look, resume, look again."""
    for path in folder.iterdir():
        path.unlink()
    out = folder / "out.gguf"
    if overwrite:
        out.write_bytes(OLD)

    def killed() -> int:
        seen = count_calls(moment)
        write_once(model, out, WriteOptions(2, overwrite=overwrite))
        return min(seen(), 250)

    def resumed() -> int:
        # A write that was killed when all was done has left nothing to resume; it is simply done again.
        done = describe(out) not in ("absent", "old") and not (folder / ".out.gguf.surgeon-journal").exists()
        write_once(model, out, WriteOptions(2, overwrite=overwrite or done, resume=True))
        return 0

    status = in_child(killed)
    after_kill = describe(out)
    left = sorted(path.name for path in folder.iterdir())
    resumed_status = in_child(resumed)
    return {
        "moment": moment,
        "overwrite": overwrite,
        "killed": status == -signal.SIGKILL,
        "status": status,
        "after_kill": after_kill,
        "left": left,
        "resumed_status": resumed_status,
        "after_resume": describe(out),
        "left_after_resume": sorted(path.name for path in folder.iterdir()),
    }


def main(model: Path, folder: Path, moments: int) -> None:
    write_once(model, folder / "out.gguf", WriteOptions(2))  # loads the kernels, once for all children
    print(json.dumps({"expected": describe(folder / "out.gguf")}))
    (folder / "out.gguf").unlink()

    def counted() -> int:
        seen = count_calls(0)
        write_once(model, folder / "out.gguf", WriteOptions(2))
        return min(seen(), 250)

    total = in_child(counted)
    spread = [1 + number * (total - 1) // moments for number in range(moments)]
    for number, moment in enumerate([*spread, *range(total - 19, total + 1)]):
        result = try_moment(model, folder, moment, overwrite=number % 2 == 1)
        # How often a run records what is finished depends on the machine's load: one that made fewer calls than
        # the counted one came to its end, and its last call is tried instead.
        while not result["killed"] and moment > 1:
            moment = min(moment - 1, result["status"])
            result = try_moment(model, folder, moment, overwrite=number % 2 == 1)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
