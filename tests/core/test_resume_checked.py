"""Resuming trusts nothing it did not check: data, size, the input, and names given halfway."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_faults import in_child
from gguf_builder import toy_llama
from moments_toy import HEAD, Toy, toy_moments

from surgeon.commands.quantize import main as quantize_command
from surgeon.errors import Cancelled, SurgeonError
from surgeon.gguf.identity import model_identity
from surgeon.imatrix.files import gguf_bytes
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.write import operation
from surgeon.write.operation import Summary, WriteOptions, write
from surgeon.write.output_file import OutputFile
from surgeon.write.output_set import Extra
from surgeon.write_guard import Kind

PART, LOG = ".out.gguf.surgeon-part", ".out.gguf.surgeon-journal"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_llama(tmp_path / "in.gguf", layers=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where outputs go; reads are slow and every finished tensor is recorded at once."""
    monkeypatch.setattr(operation, "TICK", 0.001)
    monkeypatch.setattr(operation, "CHECKPOINT_SECONDS", 0.0)
    preadv, pause = os.preadv, threading.Event()

    def slowly(*args: Any) -> int:
        pause.wait(0.005)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", slowly)
    path = tmp_path / "output"
    path.mkdir()
    return path


def run(model: Path, out: Path, options: WriteOptions, cancelled: threading.Event | None = None) -> Summary:
    *_, last = write(resolve(load_model(model), Plan("Q8_0")), None, out, options, cancelled or threading.Event())
    assert isinstance(last, Summary)
    return last


def stop_once_recorded(model: Path, folder: Path, cancelled: threading.Event) -> None:
    resolution = resolve(load_model(model), Plan("Q8_0"))
    for _ in write(resolution, None, folder / "out.gguf", WriteOptions(1, resume=True), cancelled):
        if (folder / LOG).read_bytes().count(b"finished") > 6:
            cancelled.set()


def stopped(model: Path, folder: Path) -> tuple[Path, bytes]:
    """The part file of a write that was cancelled midway, and the bytes that must come of it."""
    whole = folder / "whole.gguf"
    run(model, whole, WriteOptions(1))
    cancelled = threading.Event()
    with pytest.raises(Cancelled, match="continue with --resume"):
        stop_once_recorded(model, folder, cancelled)
    return folder / PART, whole.read_bytes()


def test_damage_in_the_part_file_is_found_and_written_again(model: Path, folder: Path) -> None:
    part, expected = stopped(model, folder)
    data = bytearray(part.read_bytes())
    start = next(at for at in range(4096, len(data), 512) if data[at : at + 64] == expected[at : at + 64] != bytes(64))
    data[start : start + 32] = os.urandom(32)
    part.write_bytes(data)  # the same file: opened and written over
    summary = run(model, folder / "out.gguf", WriteOptions(1, resume=True))
    assert (summary.damaged, summary.resumed > 0) == (1, True)
    assert (folder / "out.gguf").read_bytes() == expected


def test_every_byte_of_the_left_over_may_be_wrong(model: Path, folder: Path) -> None:
    part, expected = stopped(model, folder)
    with part.open("r+b") as file:
        file.write(os.urandom(len(expected)))  # header, data and padding
    summary = run(model, folder / "out.gguf", WriteOptions(1, resume=True))
    assert (summary.resumed, summary.damaged > 5) == (0, True)
    assert (folder / "out.gguf").read_bytes() == expected


@pytest.mark.parametrize("change", [-1, -70_000, 1])
def test_a_part_file_of_another_size_is_refused(model: Path, folder: Path, change: int) -> None:
    part, expected = stopped(model, folder)
    os.truncate(part, len(expected) + change)
    left = part.read_bytes()
    with pytest.raises(SurgeonError, match=r"out.gguf: cannot resume, .*surgeon-part has [\d,]+ bytes and not [\d,]+"):
        run(model, folder / "out.gguf", WriteOptions(1, resume=True))
    assert part.read_bytes() == left
    assert not (folder / "out.gguf").exists()
    run(model, folder / "out.gguf", WriteOptions(1))
    assert (folder / "out.gguf").read_bytes() == expected


@pytest.mark.parametrize("place", ["header", "data"])
def test_an_input_changed_in_place_is_noticed_though_its_time_is_put_back(
    model: Path, folder: Path, place: str
) -> None:
    stopped(model, folder)
    stat = model.stat()
    with model.open("r+b") as file:
        if place == "header":
            file.seek(model.read_bytes().index(b"toy"))
            file.write(b"tey")
        else:
            file.seek(-5, 2)
            file.write(b"\0")
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert model.stat().st_mtime_ns == stat.st_mtime_ns
    with pytest.raises(SurgeonError, match=r"cannot resume, the (model|plan)"):
        run(model, folder / "out.gguf", WriteOptions(1, resume=True))
    assert not (folder / "out.gguf").exists()


def test_a_check_that_is_cancelled_throws_nothing_away(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, expected = stopped(model, folder)
    left = part.read_bytes()
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled, match="continue with --resume"):
        run(model, folder / "out.gguf", WriteOptions(1, resume=True), cancelled)
    assert part.read_bytes() == left
    assert run(model, folder / "out.gguf", WriteOptions(1, resume=True)).resumed > 0
    assert (folder / "out.gguf").read_bytes() == expected


# ------------------------------------------------------------------ two files that get their names together

MATRIX = gguf_bytes(
    Imatrix(Path("i"), {"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 64), np.float32), np.array([64]))})
)


def both(model: Path, folder: Path, *, overwrite: bool = False, resume: bool = False) -> Summary:
    extra = Extra.of(folder / "i.gguf", Kind.IMATRIX, MATRIX)
    options = WriteOptions(1, overwrite=overwrite, resume=resume)
    resolution = resolve(load_model(model), Plan("Q8_0"))
    *_, last = write(resolution, None, folder / "out.gguf", options, threading.Event(), (extra,))
    assert isinstance(last, Summary)
    return last


def killed_between(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of both that died when only the matrix had its name."""
    place = OutputFile.place

    def dying(self: OutputFile, *args: Any, **kwargs: Any) -> None:
        if self.target.name == "out.gguf":
            os.kill(os.getpid(), signal.SIGKILL)
        place(self, *args, **kwargs)

    def work() -> int:
        monkeypatch.setattr(OutputFile, "place", dying)
        both(model, folder)
        return 0

    assert in_child(work) == (-signal.SIGKILL, "")
    monkeypatch.undo()
    assert (folder / "i.gguf").read_bytes() == MATRIX
    assert not (folder / "out.gguf").exists()


def test_killed_between_two_names_the_same_command_completes(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_between(model, folder, monkeypatch)
    summary = both(model, folder)  # neither --resume nor --overwrite
    assert summary.resumed > 0
    run(model, folder / "whole.gguf", WriteOptions(1))
    assert (folder / "out.gguf").read_bytes() == (folder / "whole.gguf").read_bytes()
    assert sorted(os.listdir(folder)) == ["i.gguf", "out.gguf", "whole.gguf"]


def test_moments_get_their_name_together_with_the_model(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments, saved, out = folder / "m.gguf", folder / "saved.gguf", folder / "out.gguf"
    x = np.random.default_rng(1).standard_normal((600, 256)).astype(np.float32)
    head = replace(HEAD, model=model_identity(model))
    toy_moments(moments, Toy({"blk.0.attn_q.weight": x, "blk.1.attn_q.weight": x * x}), head)
    words = ["--moments", str(moments), "--shrink", "0.25", "--prune-layers", "0", "--save-moments", str(saved)]
    words += [str(model), str(out), "Q4_0", "1"]
    place, dies = OutputFile.place, False

    def failing(self: OutputFile, *args: Any, **kwargs: Any) -> None:
        if self.target.name == "out.gguf":
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(5, "Input/output error")
        place(self, *args, **kwargs)

    monkeypatch.setattr(OutputFile, "place", failing)
    with pytest.raises(SurgeonError, match="Input/output error"):
        quantize_command(words)
    assert not saved.exists()
    assert not out.exists()
    dies = True
    assert in_child(lambda: quantize_command(words)) == (-signal.SIGKILL, "")
    assert saved.exists()
    assert not out.exists()
    monkeypatch.undo()
    with saved.open("r+b") as file:
        file.seek(-40, 2)
        before = file.read(1)
        file.seek(-40, 2)
        file.write(bytes([before[0] ^ 1]))
        file.flush()
        with pytest.raises(SurgeonError, match=r"cannot resume, saved.gguf is not as it was left"):
            quantize_command(words)
        file.seek(-40, 2)
        file.write(before)
    assert quantize_command(words) == 0
    assert sorted(load_moments(saved).users) == ["blk.0.attn_q.weight"]
    assert load_model(out).file.tensors
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_placed_file_that_was_changed_is_not_completed(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_between(model, folder, monkeypatch)
    with (folder / "i.gguf").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(SurgeonError, match=r"cannot resume, i.gguf is not as it was left"):
        both(model, folder)
    assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_between_two_names_takes_the_first_back(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    old = toy_llama(folder / "out.gguf").read_bytes() if there else b""
    older = MATRIX.replace(b"\0\0\x80\x3f", b"\0\0\0\x40")
    if there:
        (folder / "i.gguf").write_bytes(older)
    place = OutputFile.place

    def failing(self: OutputFile, *args: Any, **kwargs: Any) -> None:
        if self.target.name == "out.gguf":
            raise OSError(5, "Input/output error")
        place(self, *args, **kwargs)

    monkeypatch.setattr(OutputFile, "place", failing)
    with pytest.raises(SurgeonError, match=r"out.gguf: cannot be written: Input/output error; .* continue with"):
        both(model, folder, overwrite=there)
    assert (folder / "i.gguf").exists() is there
    if there:
        assert ((folder / "i.gguf").read_bytes(), (folder / "out.gguf").read_bytes()) == (older, old)
    monkeypatch.setattr(OutputFile, "place", place)
    both(model, folder, overwrite=there, resume=True)
    assert (folder / "i.gguf").read_bytes() == MATRIX
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
