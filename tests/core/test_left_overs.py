"""What a killed process leaves: nothing but what is resumed, once the next of its kind has begun."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from surgeon.measure.scratch import scan_folder
from surgeon.whole_files import sweep, write_whole

WRITING = """
from surgeon.whole_files import written_whole
with written_whole(Path(sys.argv[1], "out.txt")) as place:
    place.write_bytes(bytes(10)); print("ready", flush=True); time.sleep(60)
"""
SCANNING = """
import tempfile
from surgeon.measure.scratch import scan_folder
tempfile.tempdir = sys.argv[1]
with scan_folder() as place:
    (place / "base.kld").write_bytes(bytes(10)); print("ready", flush=True); time.sleep(60)
"""


def killed(code: str, folder: Path) -> Path:
    """What is left in `folder` of a process that is killed while it writes there."""
    command = [sys.executable, "-c", f"import sys, time\nfrom pathlib import Path\n{code}", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (left,) = folder.iterdir()
        sweep(folder)
        assert left.exists(), "it is in use"
        process.kill()
        process.wait()
    return left


def test_the_next_file_in_a_folder_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    left = killed(WRITING, tmp_path)
    assert left.exists()
    write_whole(tmp_path / "other.txt", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_the_next_scan_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed(SCANNING, tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scan_folder() as folder:
        assert not left.exists()
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("of the user")
    link, pipe, held = (tmp_path / f".{name}.x.surgeon-tmp" for name in ("link", "pipe", "held"))
    link.symlink_to(precious)
    os.mkfifo(pipe)
    (tmp_path / ".hidden").write_text("of the user")
    (tmp_path / "visible.surgeon-tmp").write_text("of the user")
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    sweep(tmp_path)
    assert not held.exists()
    assert precious.read_text() == "of the user"


def test_a_name_as_long_as_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("𝄞" * 62 + ".txt")  # 252 bytes
    write_whole(path, "text")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
