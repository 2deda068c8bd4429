"""What goes wrong while writing: the input stays, the final name holds the old file or the whole new one."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import toy_llama

from surgeon.errors import Cancelled, SurgeonError
from surgeon.imatrix.files import load_imatrix
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.write import operation, output_set
from surgeon.write.operation import Progress, Summary, WriteOptions, write
from surgeon.write.output_file import OutputFile

OLD = b"GGUF, the old file"


def start(
    model: Path, out: Path, options: WriteOptions | None = None, plan: Plan | None = None
) -> Iterator[Progress | Summary]:
    return write(resolve(load_model(model), plan or Plan()), None, out, options or WriteOptions(2), threading.Event())


def run(model: Path, out: Path, options: WriteOptions | None = None, plan: Plan | None = None) -> Summary:
    *_, summary = start(model, out, options, plan)
    assert isinstance(summary, Summary)
    return summary


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """A toy model in a folder of its own; fails the test if it was touched."""
    folder = tmp_path / "input"
    folder.mkdir()
    path = toy_llama(folder / "in.gguf", layers=4)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record finished tensors as soon as possible."""
    monkeypatch.setattr(operation, "TICK", 0.001)
    monkeypatch.setattr(operation, "CHECKPOINT_SECONDS", 0.0)


def failing_after(calls: int, error: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, which fails with the errno `error` from call number `calls` on."""
    seen = [0]

    def wrapped(*args: Any) -> Any:
        seen[0] += 1
        if seen[0] > calls:
            raise OSError(error, os.strerror(error))
        return call(*args)

    return wrapped


# ------------------------------------------------------------------ what is refused at once


def test_output_is_the_input(model: Path, folder: Path) -> None:
    (folder / "soft.gguf").symlink_to(model)
    (folder / "hard.gguf").hardlink_to(model)
    for out in (model, folder / "soft.gguf", folder / "hard.gguf", model.parent / ".." / "input" / "in.gguf"):
        for overwrite in (False, True):
            with pytest.raises(SurgeonError, match=r"is the input .*in.gguf itself"):
                run(model, out, WriteOptions(2, overwrite=overwrite))
    assert names(model.parent) == ["in.gguf"]


def test_output_is_a_shard_of_the_input(golden_models: Path, folder: Path) -> None:
    shards = []
    for number in (1, 2, 3):
        shard = folder / f"shard-0000{number}-of-00003.gguf"
        shard.write_bytes((golden_models / shard.name).read_bytes())
        shards.append(shard)
    before = [shard.read_bytes() for shard in shards]
    for out in (shards[2], folder / "shard.gguf"):
        plan = Plan(keep_split=out.name == "shard.gguf")
        with pytest.raises(SurgeonError, match=r"is the input"):
            run(shards[0], out, WriteOptions(2, overwrite=True), plan)
    assert [shard.read_bytes() for shard in shards] == before


def test_output_is_the_imatrix(demo_model: Path, demo_imatrix: Path) -> None:
    imatrix = load_imatrix(demo_imatrix)
    resolution = resolve(load_model(demo_model), Plan(), imatrix)
    with pytest.raises(SurgeonError, match=r"is the input"):
        list(write(resolution, imatrix, demo_imatrix, WriteOptions(2, overwrite=True), threading.Event()))


def test_an_existing_output_needs_consent(model: Path, folder: Path) -> None:
    out = folder / "out.gguf"
    out.write_bytes(OLD)
    with pytest.raises(SurgeonError, match=r"out.gguf: already exists; choose another name or pass --overwrite"):
        run(model, out)
    assert out.read_bytes() == OLD
    assert names(folder) == ["out.gguf"]
    run(model, out, WriteOptions(2, overwrite=True))
    assert load_model(out).tensors


def test_the_old_file_stays_until_the_end(model: Path, folder: Path) -> None:
    out = folder / "out.gguf"
    out.write_bytes(OLD)
    for item in start(model, out, WriteOptions(2, overwrite=True)):
        if isinstance(item, Progress):
            assert out.read_bytes() == OLD
    assert out.read_bytes() != OLD


def test_places_where_nothing_can_be_written(model: Path, folder: Path) -> None:
    with pytest.raises(SurgeonError, match=r"the folder .*missing does not exist; make it first"):
        run(model, folder / "missing" / "out.gguf")
    with pytest.raises(SurgeonError, match=r"is a folder; give the name of a file"):
        run(model, folder, WriteOptions(2, overwrite=True))
    with pytest.raises(SurgeonError, match=r"/dev/null: is a device or pipe"):
        run(model, Path("/dev/null"), WriteOptions(2, overwrite=True))


def test_no_permission(model: Path) -> None:
    resolution = resolve(load_model(model), Plan())
    with tempfile.TemporaryDirectory() as name:  # not below pytest's own folders, which are closed to other users
        folder = Path(name)
        folder.chmod(0o555)
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(SurgeonError, match=r"out.gguf: no permission to write in /.*; choose another folder"):
                list(write(resolution, None, folder / "out.gguf", WriteOptions(2), threading.Event()))
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
        assert not names(folder)


def test_a_second_writer_is_refused(model: Path, folder: Path) -> None:
    first = start(model, folder / "out.gguf")
    next(first)
    with pytest.raises(SurgeonError, match=r"out.gguf: is being written by another surgeon right now"):
        run(model, folder / "out.gguf")
    assert isinstance(list(first)[-1], Summary)
    assert names(folder) == ["out.gguf"]


def test_the_lock_ends_with_the_writer_though_a_sync_goes_on(folder: Path) -> None:
    first, second = (OutputFile(folder / "out.gguf", 10) for _ in range(2))
    first.open()
    syncing = os.dup(first.fd)  # as good as a thread inside fsync: the file stays open
    first.close()
    second.open()
    second.discard()
    os.close(syncing)


def test_a_planted_link_is_not_followed(model: Path, folder: Path) -> None:
    (folder / "victim").write_bytes(OLD)
    (folder / ".out.gguf.surgeon-part").symlink_to(folder / "victim")
    with pytest.raises(SurgeonError, match=r"cannot create .out.gguf.surgeon-part"):
        run(model, folder / "out.gguf")
    assert (folder / "victim").read_bytes() == OLD


# ------------------------------------------------------------------ disk and file errors


def test_a_full_disk_shows_before_the_work(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(output_set.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SurgeonError, match=r"No space left on device: [\d,]+ bytes needed, 1,000 free in .*output"):
        next(start(model, folder / "out.gguf"))
    assert not names(folder)


def test_a_disk_that_fills_up(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", failing_after(5, errno.ENOSPC, os.pwrite))
    with pytest.raises(SurgeonError, match=r"cannot write tensor \S+: No space left on device: .* nothing was"):
        run(model, folder / "out.gguf")
    assert not names(folder)


def test_a_small_file_system(model: Path, folder: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(SurgeonError, match=r"No space left on device"):
            run(model, folder / "out.gguf")
        assert not names(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_size_limit(model: Path, folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SurgeonError, match=r"over the limit for one file here; write shards"):
            run(model, folder / "out.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not names(folder)


def test_a_read_error_in_the_middle(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", failing_after(7, errno.EIO, os.preadv))
    with pytest.raises(SurgeonError, match=r"in.gguf: cannot read \S+: Input/output error"):
        run(model, folder / "out.gguf")
    assert not names(folder)


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_an_error_at_the_end(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    out = folder / "out.gguf"
    if call == "link":  # no hard links on this file system: it is renamed instead
        monkeypatch.setattr(os, "link", failing_after(0, errno.EPERM, os.link))
        run(model, out)
        assert names(folder) == ["out.gguf"]
    else:
        monkeypatch.setattr(os, "fsync", failing_after(1, errno.EIO, os.fsync))
        with pytest.raises(SurgeonError, match=r"out.gguf: cannot be written: Input/output error; nothing was left"):
            run(model, out)
        assert not names(folder)


@pytest.mark.usefixtures("eager", "slow_reads")
def test_a_failed_sync_is_not_forgotten(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    calls = [0]

    def failing_once(fd: int) -> None:
        calls[0] += 1
        if calls[0] == 2:  # after the journal's first line: the first checkpoint, which outlasts the transfer
            threading.Event().wait(1.0)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing_once)
    with pytest.raises(SurgeonError, match=r"cannot be written: Input/output error; nothing was left behind"):
        run(model, folder / "out.gguf")
    assert not names(folder)


def test_a_changed_input(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    reads = [0]

    def touching(*args: Any) -> int:
        reads[0] += 1
        if reads[0] == 10:
            os.utime(model)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", touching)
    with pytest.raises(SurgeonError, match=r"in.gguf: was changed while it was being read"):
        run(model, folder / "out.gguf")
    assert not names(folder)


def test_an_input_cut_short(tmp_path: Path, folder: Path) -> None:
    path = toy_llama(tmp_path / "in.gguf", layers=4)
    resolution = resolve(load_model(path), Plan())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SurgeonError, match=r"in.gguf: (the file was cut short while|was changed)"):
        list(write(resolution, None, folder / "out.gguf", WriteOptions(2), threading.Event()))
    assert not names(folder)


def test_an_output_that_appears_meanwhile_wins(model: Path, folder: Path) -> None:
    out = folder / "out.gguf"
    reports = start(model, out)
    next(reports)
    out.write_bytes(OLD)
    with pytest.raises(SurgeonError, match=r"already exists; choose another name.*are kept in .*surgeon-part"):
        list(reports)
    assert out.read_bytes() == OLD
    summary = run(model, out, WriteOptions(2, overwrite=True, resume=True))
    assert summary.resumed == summary.copied
    assert load_model(out).tensors
    assert names(folder) == ["out.gguf"]


def test_another_file_system(model: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == model.stat().st_dev:
        pytest.skip("no second file system here")
    out = shm / f"surgeon-test-{os.getpid()}.gguf"
    try:
        run(model, out)
        assert len(load_model(out).tensors) == len(load_model(model).tensors)
    finally:
        out.unlink(missing_ok=True)


# ------------------------------------------------------------------ stopping and resuming


def cancel_once_recorded(model: Path, out: Path, options: WriteOptions, journal: Path) -> None:
    """Write, and cancel when some tensors are recorded in the journal."""
    cancelled = threading.Event()
    for _ in write(resolve(load_model(model), Plan()), None, out, options, cancelled):
        if journal.read_bytes().count(b"finished") > 1:
            cancelled.set()


def stop_midway(model: Path, out: Path, first: Path | None = None, split_max_bytes: int = 0) -> None:
    """Leave a run to be resumed; `first` is its first output file."""
    first = first or out
    journal = first.with_name(f".{first.name}.surgeon-journal")
    options = WriteOptions(2, resume=True, split_max_bytes=split_max_bytes)
    with pytest.raises(Cancelled, match=r"tensors are kept in .*surgeon-part: continue with --resume"):
        cancel_once_recorded(model, out, options, journal)


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read in five milliseconds, so that a run can be stopped midway."""
    preadv = os.preadv
    pause = threading.Event()

    def slow(*args: Any) -> int:
        pause.wait(0.005)
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", slow)


@pytest.mark.usefixtures("eager", "slow_reads")
@pytest.mark.parametrize("split", [0, 500_000])
def test_a_stopped_run_resumes_to_the_same_bytes(model: Path, folder: Path, split: int) -> None:
    whole = run(model, folder / "whole.gguf", WriteOptions(2, split_max_bytes=split))
    first = whole.paths[0].with_name(whole.paths[0].name.replace("whole", "out"))
    stop_midway(model, folder / "out.gguf", first, split)
    assert not [name for name in names(folder) if name.startswith("out")]
    summary = run(model, folder / "out.gguf", WriteOptions(2, resume=True, split_max_bytes=split))
    assert 0 < summary.resumed < summary.copied
    assert [path.read_bytes() for path in summary.paths] == [path.read_bytes() for path in whole.paths]
    assert not [name for name in names(folder) if name.startswith(".")]


@pytest.mark.usefixtures("eager", "slow_reads")
def test_without_resume_a_left_over_is_replaced(model: Path, folder: Path) -> None:
    out = folder / "out.gguf"
    stop_midway(model, out)
    assert run(model, out).resumed == 0
    assert names(folder) == ["out.gguf"]


@pytest.mark.usefixtures("eager", "slow_reads")
def test_another_plan_does_not_resume(model: Path, folder: Path) -> None:
    out = folder / "out.gguf"
    stop_midway(model, out)
    left = names(folder)
    with pytest.raises(SurgeonError, match=r"cannot resume, the plan, the imatrix or the program has changed since"):
        run(model, out, WriteOptions(2, resume=True), Plan(pruned=frozenset({1})))
    assert names(folder) == left
    assert run(model, out, WriteOptions(2, resume=True)).resumed > 0


@pytest.mark.usefixtures("eager", "slow_reads")
def test_a_changed_model_does_not_resume(tmp_path: Path, folder: Path) -> None:
    path, out = toy_llama(tmp_path / "in.gguf", layers=4), folder / "out.gguf"
    stop_midway(path, out)
    os.utime(path)
    with pytest.raises(SurgeonError, match=r"cannot resume, the model has changed since"):
        run(path, out, WriteOptions(2, resume=True))


@pytest.mark.usefixtures("eager", "slow_reads")
def test_a_torn_journal_ends_at_its_last_whole_line(model: Path, folder: Path) -> None:
    out, journal = folder / "out.gguf", folder / ".out.gguf.surgeon-journal"
    run(model, folder / "whole.gguf")
    stop_midway(model, out)
    lines = journal.read_bytes().splitlines(keepends=True)
    recorded = len(json.loads(lines[1][9:])["finished"])
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:-3] + b"x\n" + b"".join(lines[3:]))
    assert run(model, out, WriteOptions(2, resume=True)).resumed == recorded
    assert out.read_bytes() == (folder / "whole.gguf").read_bytes()


def test_resume_without_a_left_over_starts(model: Path, folder: Path) -> None:
    assert run(model, folder / "out.gguf", WriteOptions(2, resume=True)).resumed == 0


def test_a_finished_file_with_two_names_is_not_emptied(model: Path, folder: Path) -> None:
    out = folder / "out.gguf"
    run(model, out)
    written = out.read_bytes()
    (folder / ".out.gguf.surgeon-part").hardlink_to(out)  # as a run killed between link and unlink leaves it
    reports = start(model, out, WriteOptions(2, overwrite=True), Plan(pruned=frozenset({0})))
    next(reports)
    assert out.read_bytes() == written
    list(reports)
    assert out.read_bytes() != written
    assert names(folder) == ["out.gguf"]


def killed_at(model: Path, folder: Path, moments: int) -> tuple[str, list[dict[str, Any]]]:
    """Hash of the undisturbed output, and what killed_writer.py found at each moment."""
    script = Path(__file__).with_name("killed_writer.py")
    command = [sys.executable, str(script), str(model), str(folder), str(moments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *found = map(json.loads, done.stdout.splitlines())
    return first["expected"], found


def test_killed_at_any_moment(model: Path) -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing costs nothing
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        new, moments = killed_at(model, Path(folder), 100)
    assert sum(moment["killed"] for moment in moments) >= 100
    for moment in moments:
        untouched = "old" if moment["overwrite"] else "absent"
        assert moment["after_kill"] in (untouched, new), moment
        assert moment["resumed_status"] == 0, moment
        assert moment["after_resume"] == new, moment
        assert moment["left_after_resume"] == ["out.gguf"], moment
    assert {moment["after_kill"] for moment in moments} == {"old", "absent", new}
