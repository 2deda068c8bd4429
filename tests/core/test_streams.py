"""Exit codes and streams: a lost log stops no work, a lost result and every failure is told by the exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_builder import toy_llama

from surgeon import cli
from surgeon.streams import Lasting

SURGEON = f"{sys.executable} -m surgeon"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_llama(tmp_path / "in.gguf")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command line as a user types it; the exit code is that of the first program of the pipe."""
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=folder)


def line_of(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""


@pytest.mark.parametrize(
    "streams",
    ["| head -1", "> /dev/full 2>&1", ">&- 2>&- <&-"],
)
def test_a_lost_log_stops_no_write(model: Path, tmp_path: Path, streams: str) -> None:
    done = shell(f"{SURGEON} quantize in.gguf out.gguf COPY {streams}", tmp_path)
    assert (done.returncode, line_of(done)) == (0, "")
    # Nor has a message landed in the file, which would be descriptor 2 where that was closed.
    assert sorted(os.listdir(tmp_path)) == ["in.gguf", "out.gguf"]
    assert cli.run(["quantize", str(model), str(tmp_path / "again.gguf"), "COPY"]) == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


@pytest.mark.parametrize("streams", ["2>&1 | head -0", "> /dev/full", ">&- 2>&-"])
def test_a_failure_stays_one(model: Path, tmp_path: Path, streams: str) -> None:
    (tmp_path / "damaged.gguf").write_bytes(model.read_bytes()[:-4000])
    for command, code in (("quantize damaged.gguf out.gguf COPY", 1), ("show --no-such-option in.gguf", 2)):
        assert shell(f"{SURGEON} {command} {streams}", tmp_path).returncode == code
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "command", ["show in.gguf", "quantize --dry-run in.gguf Q8_0", "show --help"]
)  # fmt: skip
def test_a_lost_result_is_a_failure(model: Path, tmp_path: Path, command: str) -> None:
    done = shell(f"{SURGEON} {command} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert line_of(done) == "surgeon: stdout: cannot be written: No space left on device"
    assert shell(f"{SURGEON} {command} >&-", tmp_path).returncode == 1
    assert shell(f"{SURGEON} {command} | head -0", tmp_path).returncode == 0


def test_a_lost_json_is_told_though_the_file_is_there(model: Path, tmp_path: Path) -> None:
    done = shell(f"{SURGEON} quantize --json in.gguf out.gguf COPY > /dev/full", tmp_path)
    assert done.returncode == 1
    assert line_of(done).startswith("surgeon: stdout: cannot be written")
    assert (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("command", "streams"), [("in.gguf", "< /dev/null"), ("open in.gguf", "| cat"), ("demo", "2> log")]
)
def test_the_screen_needs_a_terminal(model: Path, tmp_path: Path, command: str, streams: str) -> None:
    done = shell(f"{SURGEON} {command} {streams}", tmp_path)
    told = (tmp_path / "log").read_text() if "log" in streams else done.stderr
    assert done.returncode == 2
    assert len(told.splitlines()) == 1
    assert "is not a terminal, and the screen needs one; surgeon show" in told


def test_a_stream_remembers_its_first_failure_only() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = Lasting(write)
    assert stream.write(b"abc") == 3
    assert stream.failure is not None
    assert stream.failure.errno == errno.EPIPE
    assert stream.write(b"abcd") == 4
    os.close(write)


# ------------------------------------------------------------------ signals


def started(folder: Path, *before: str) -> subprocess.Popen[str]:
    """A write that has begun: its temporary file is there, its kernels are being loaded or it runs."""
    command = [*before, sys.executable, "-m", "surgeon", "quantize", "--resume", "in.gguf", "out.gguf", "IQ4_XS"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    end = time.monotonic() + 60
    while not (folder / ".out.gguf.surgeon-journal").exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ending_signals_end_a_write_in_order(tmp_path: Path, number: signal.Signals) -> None:
    toy_llama(tmp_path / "in.gguf", layers=40)
    process = started(tmp_path)
    process.send_signal(number)
    process.send_signal(number)  # a second one does not interrupt the cleaning up
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "cancelled after" in errors
    assert "nothing was left behind" in errors or "continue with --resume" in errors
    left = sorted(os.listdir(tmp_path))
    assert left == ["in.gguf"] or ".out.gguf.surgeon-journal" in left


def test_nohup_is_respected(tmp_path: Path) -> None:
    toy_llama(tmp_path / "in.gguf", layers=10)
    process = started(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "out.gguf").exists()
