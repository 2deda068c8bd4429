"""The real program in a real terminal: tmux at 80x24, keys in, screen out. On a private tmux server."""

from __future__ import annotations

import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import gguf
import pytest

from surgeon.model.model import load_model

TMUX = shutil.which("tmux")
needs_tmux = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")


class Terminal:
    """A tmux session of its own with one program in it."""

    def __init__(self, folder: Path, size: tuple[int, int], command: str) -> None:
        self.socket = "surgeon"
        self.folder = tempfile.mkdtemp(prefix="tmux-")  # short: the path of a socket may have 107 bytes at most
        environment = dict(os.environ, TMUX_TMPDIR=self.folder, TERM="xterm-256color", LC_ALL="C.UTF-8")
        environment.pop("TMUX", None)
        environment |= {"XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config")}
        self.environment = environment
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), command)

    def tmux(self, *arguments: str) -> str:
        command = [str(TMUX), "-L", self.socket, "-u", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.tmux("send-keys", key)

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait(self, pattern: str, seconds: float = 90.0) -> str:
        """The screen as soon as `pattern` is found in it; a test that waits in vain fails with the screen."""
        end = time.monotonic() + seconds
        while True:
            shown = self.screen()
            if re.search(pattern, shown):
                return shown
            assert time.monotonic() < end, f"{pattern!r} never came:\n{shown}"
            time.sleep(0.05)

    def close(self) -> None:
        subprocess.run([str(TMUX), "-L", self.socket, "kill-server"], env=self.environment, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def terminal(model_copy: Path, demo_imatrix: Path, tmp_path: Path) -> Iterator[Terminal]:
    command = f"{sys.executable} -m surgeon {model_copy} --imatrix {demo_imatrix}; echo CODE $?; sleep 60"
    terminal = Terminal(tmp_path, (80, 24), command)
    yield terminal
    terminal.close()


@needs_tmux
def test_a_whole_operation_in_80_columns(terminal: Terminal, model_copy: Path) -> None:
    shown = terminal.wait(r"imatrix 85/85[\s\S]*▸ blk\.11[\s\S]*q quit")
    assert "p prune  t type  m base  : rule  / filter  u undo  w write  ? help  q quit" in shown
    assert max(map(len, shown.splitlines())) <= 80

    terminal.keys("l")
    terminal.wait(r"▾ blk\.0[\s\S]*ffn_gate")
    terminal.keys("/")
    terminal.wait("filter")
    terminal.type("ffn_down")
    terminal.wait("12 of 111 tensors")
    terminal.keys("Enter")
    terminal.wait("24 rows")
    terminal.keys("Escape")
    terminal.wait("q quit")

    terminal.keys("J", "J", "p")
    terminal.wait(r"blk\.2 pruned[\s\S]*blk\.3 → 2[\s\S]*prune 2:")
    terminal.keys("J", "l", "j", "j", "t")
    terminal.wait(r"this tensor.*\n.*blk\.3\.ffn_down\.weight[\s\S]*Q8_0 +8\.500 +209 kB")
    terminal.keys("k", "k", "g", "j", "j", "j", "j", "Enter")
    terminal.wait(r"F16→Q8_0[\s\S]*blk\.3\.ffn_down\.weight = q8_0")
    terminal.keys("u")
    terminal.wait("undone: blk.3.ffn_down.weight = q8_0")
    terminal.keys("C-r")
    terminal.wait("again: blk.3.ffn_down.weight = q8_0")
    for command in ("base q8_0", "attn_v=f16"):
        terminal.keys(":")
        terminal.wait("rule or command")
        terminal.type(command)
        terminal.keys("Enter")
        terminal.wait(re.escape(command.removeprefix("base ").upper() if command.startswith("base") else command))
    header = terminal.wait(r"1 rule\b")
    assert re.search(r"Q8_0 +23\.2 MB → 1\d\.\d MB ▼\d\d% +\d\.\d\d bpw +✗ 1 pruned", header)

    terminal.keys("w")
    terminal.wait("Enter write")
    terminal.keys("Enter")
    terminal.wait(r"written +1\d\.\d MB in", 180)
    terminal.keys("Enter", "w")
    terminal.wait("already exists")
    terminal.keys("Enter", "y")
    terminal.wait(r"written +1\d\.\d MB in", 180)
    terminal.keys("Enter")
    terminal.wait("q quit|written")
    terminal.keys("q")
    terminal.wait("CODE 0")

    out = model_copy.with_name("novels-12M-pruned-2-Q8_0.gguf")
    with load_model(out).file as written:
        types = {tensor.name: tensor.type_name for tensor in written.tensors}
    assert len(types) == 102
    assert types["blk.2.ffn_down.weight"] == "Q8_0"
    assert {types[f"blk.{layer}.attn_v.weight"] for layer in range(11)} == {"F16"}
    assert len(gguf.GGUFReader(out).tensors) == 102
    assert not list(out.parent.glob("*.part*"))


@needs_tmux
def test_resizing_and_no_colour(terminal: Terminal) -> None:
    terminal.wait(r"▸ blk\.11")
    terminal.tmux("resize-window", "-x", "200", "-y", "60")
    shown = terminal.wait(r"token_embd +256×4096")
    assert "why" in shown
    terminal.tmux("resize-window", "-x", "80", "-y", "24")
    shown = terminal.wait(r"q quit *$")
    assert "256×4096" not in shown
    terminal.keys("q")
    terminal.wait("CODE 0")


@needs_tmux
def test_without_colours_the_cursor_is_reversed(model_copy: Path, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, (80, 24), f"NO_COLOR=1 {sys.executable} -m surgeon {model_copy}; sleep 60")
    try:
        terminal.wait(r"▸ blk\.11")
        terminal.keys("m")
        terminal.wait("IQ4_XS")
        drawn = terminal.tmux("capture-pane", "-pe")
        assert not re.search(r"\x1b\[[0-9;]*[34]8[;:]", drawn), "a colour"
        (line,) = (line for line in drawn.splitlines() if "COPY " in line and "bpw" not in line)
        assert "\x1b[7m" in line
    finally:
        terminal.close()


@needs_tmux
def test_ascii_signs_only(model_copy: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m surgeon {model_copy} --imatrix {demo_imatrix} --ascii --no-mouse; sleep 60"
    terminal = Terminal(tmp_path, (100, 30), command)
    try:
        terminal.wait(r"\+ blk\.11")
        terminal.keys("l", "j", "p", "t")
        terminal.wait("this tensor|layer")
        assert terminal.screen().isascii(), sorted(set(terminal.screen()) - set(map(chr, range(128))))
    finally:
        terminal.close()


def on_a_terminal(arguments: list[str], keys: bytes = b"", seconds: float = 60.0) -> tuple[int, bytes]:
    """Exit code and output of `python -m surgeon` on a pseudo terminal of 80x24."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "surgeon", *arguments], stdin=slave, stdout=slave, stderr=slave, close_fds=True
    )
    os.close(slave)
    if keys:
        os.write(master, keys)
    output = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed: the program has ended
            break
        if not chunk:
            break
        output += chunk
    os.close(master)
    return process.wait(timeout=10), output


def test_a_damaged_file_is_one_line_before_the_screen_starts(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    code, output = on_a_terminal([str(damaged)])
    text = output.decode()
    assert code == 1
    assert text.startswith("surgeon: ")
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert str(damaged) in text


def test_a_missing_imatrix_is_one_line_too(model_copy: Path, tmp_path: Path) -> None:
    code, output = on_a_terminal([str(model_copy), "--imatrix", str(tmp_path / "none.gguf")])
    assert code == 1
    assert output.decode().count("\n") == 1
