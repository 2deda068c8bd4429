"""Whole sessions, each typed in one write into a pseudo terminal of 80x24 with TERM=xterm; then the plan that was kept.

No key may depend on what the program has drawn by then: only the start is waited for, because the terminal itself acts
on some keys before the program reads them.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest

from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe
from surgeon.tui.autosave import PlanFile
from surgeon.tui.unfinished import note_path

ESC = "\x1b"
STRIP = 3  # its line of the screen
DOWN_TYPES = {f"blk.{layer}.ffn_down.weight": "Q6_K" for layer in range(3)}


class Screen:
    """The program on a pseudo terminal."""

    def __init__(self, *arguments: str | Path, program: tuple[str, ...] = ("-m", "surgeon")) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = dict(os.environ, TERM="xterm")
        environment.pop("COLORTERM", None)
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.output = b""
        self.until(lambda: b"\x1b[?2004h" in self.output)

    def write(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, reached: Callable[[], bool], seconds: float = 120.0) -> None:
        """Read what is drawn until `reached`; a test that waits in vain fails."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, f"waited in vain; drawn so far: {self.output[-2000:]!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.output += os.read(self.master, 1 << 16)
                except OSError:  # the other end is closed
                    time.sleep(0.01)

    def end(self) -> int:
        """The exit code."""
        self.until(lambda: self.process.poll() is not None)
        os.close(self.master)
        return self.process.returncode


@pytest.fixture
def model(model_copy: Path) -> Path:
    return model_copy


def kept(model: Path) -> Plan:
    """The plan as it was kept when the program ended."""
    plan_file = PlanFile.of(model)
    assert plan_file.number == 1
    recipe = plan_file.kept() or Recipe(Plan())
    plan_file.release()
    return recipe.plan


def played(keys: str, model: Path, *options: str | Path) -> Plan:
    """The plan after these keys, all in one write, and q."""
    screen = Screen(model, *options)
    screen.write(keys + "q")
    assert screen.end() == 0
    return kept(model)


def test_a_type_is_taken_only_by_its_name(model: Path, demo_imatrix: Path) -> None:
    assert played(f"ljjtiq2_xs\r{ESC}", model).types == (), "it needs an imatrix, and no other type is taken for it"
    assert played(f"ljjtq4_x\r{ESC}", model).types == ()
    assert dict(played("ljjtq6_k\r", model).types) == {"blk.0.ffn_down.weight": "Q6_K"}
    plan = played("ljjtiq2_xs\r", model, "--imatrix", demo_imatrix)
    assert dict(plan.types) == {"blk.0.ffn_down.weight": "IQ2_XS"}


def test_a_layer_means_what_can_be_quantized(model: Path, demo_imatrix: Path) -> None:
    plan = played("Jtiq2_xs\r", model, "--imatrix", demo_imatrix)
    assert sorted(name.split(".")[2] for name, _ in plan.types) == [
        "attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up",
    ]  # fmt: skip
    assert {kind for _, kind in plan.types} == {"IQ2_XS"}


def test_escape_lets_a_write_go_on(model: Path) -> None:
    screen = Screen(model)
    screen.write(f"5Gpw\r{ESC}")
    out = model.with_name("novels-12M-pruned-5-copy.gguf")
    screen.until(out.exists)  # of the message at the end only the cells that changed are drawn
    screen.until(lambda: not note_path(model).exists())  # the thread has ended, and q asks nothing
    screen.write("q")
    assert screen.end() == 0, "Escape has closed the dialog, and nothing else was asked"


def test_marks_heed_the_filter(model: Path) -> None:
    assert dict(played("/layer<3 ffn_down\rj*tq6_k\r", model).types) == DOWN_TYPES
    shown = played("/layer<3 ffn_down\rjt\tq6_k\r", model)
    assert dict(shown.types) == DOWN_TYPES, "Tab goes from the tensor to all that are shown"


def test_ranges_and_jumps(model: Path) -> None:
    assert played("5Gvjjp", model).pruned == {5, 6, 7}
    assert played(f"8Gvjj{ESC}p", model).pruned == {5, 6, 7, 10}, "Escape drops the range"
    assert played(":2\rp11Gp", model).pruned == {2, 5, 6, 7, 10, 11}


def test_keys_in_fields_act_in_order(model: Path) -> None:
    assert [str(rule) for rule in played(":attn_v=q6_k\x15ffn_up=q6_k\r", model).rules] == ["ffn_up=q6_k"]
    plan = played(f":base q4_k_m\r:attn_v=q5_k\rrJ\rx\x7fx{ESC}{ESC}:prune 2\ru", model)
    assert [str(rule) for rule in plan.rules] == ["attn_v=q5_k", "ffn_up=q6_k"], "moved, and the wrong edit not taken"
    assert (plan.file_type, plan.pruned) == ("Q4_K_M", set())


def test_suspend_and_interrupt(model: Path) -> None:
    screen = Screen(model)
    for keys, shown in (("", b"blk.11"), ("m", b"base file type")):  # in a dialog, too
        screen.write(keys)
        screen.until(lambda shown=shown: shown in screen.output)  # type: ignore[misc]
        screen.write("\x1a")
        screen.until(lambda: os.WIFSTOPPED(os.waitpid(screen.process.pid, os.WUNTRACED | os.WNOHANG)[1]))
        screen.until(lambda: b"\x1b[?1049l" in screen.output)  # the shell's screen is back
        screen.output = b""
        os.kill(screen.process.pid, signal.SIGCONT)
        screen.until(lambda shown=shown: shown in screen.output)  # type: ignore[misc]
    screen.write("\x1b\x03")
    screen.until(lambda: b"q quits" in screen.output)
    screen.write("q")
    assert screen.end() == 0


def test_pasting_takes_every_line(model: Path) -> None:
    start, end = "\x1b[200~", "\x1b[201~"
    rules = "attn_v=q6_k\nffn_up=q5_k\nffn_down=q8_0\n"
    for before in (":", ""):
        plan = played(f"{before}{start}{rules}{end}\r", model)
        assert [str(rule) for rule in plan.rules] == rules.split()
    command = "./llama-quantize --pure \\\n  --tensor-type attn_v=q6_k --prune-layers 3 in.gguf out.gguf q4_k_m 8"
    plan = played(f":{start}{command}{end}\r", model)
    assert plan == Plan("Q4_K_M", rules=plan.rules, pruned=frozenset({3}), pure=True)
    assert [str(rule) for rule in plan.rules] == ["attn_v=q6_k"]


def test_a_file_of_a_command_is_a_recipe(model: Path) -> None:
    script = model.with_name("make.sh")
    script.write_text("#!/bin/sh\nset -e\n./build/bin/llama-quantize --prune-layers 4 \\\n  a.gguf b.gguf Q5_K_S\n")
    plan = played("omake\t\r", model)
    assert (plan.file_type, plan.pruned) == ("Q5_K_S", {4})


def test_tab_completes_a_path_and_stays_and_paths_come_back(model: Path, demo_imatrix: Path) -> None:
    mine = model.with_name("mine.imatrix.gguf")
    mine.write_bytes(demo_imatrix.read_bytes())
    assert played("imin\t\r", model).imatrix_file == str(mine)
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    assert played(f"i{ESC}[A\r", other).imatrix_file == str(mine), "the path of the other model's session"


def test_two_programs_have_two_plans(model: Path) -> None:
    first = Screen(model)
    first.write("3Gp")
    first.until(lambda: b"pruned" in first.output)
    second = Screen(model)
    second.until(lambda: b"another surgeon" in second.output)
    second.write("8Gpq")
    assert second.end() == 0
    first.write("q")
    assert first.end() == 0
    assert kept(model).pruned == {3}


def test_undo_keeps_what_the_command_line_gave(model: Path, demo_imatrix: Path) -> None:
    assert played("3Gpuuu", model, "--imatrix", demo_imatrix).imatrix_file == str(demo_imatrix)


def test_the_end_of_a_long_job_is_told(model: Path) -> None:
    patient = "import surgeon.tui.app as app; app.LONG_JOB = {}; from surgeon.cli import main; raise SystemExit(main())"
    out = model.with_name("novels-12M-pruned-5-copy.gguf")
    for seconds, told in (("0.0", 1), ("1e9", 0)):
        screen = Screen(model, program=("-c", patient.format(seconds)))
        screen.write("5Gpw\r")
        screen.until(lambda: out.exists() and not note_path(model).exists())
        screen.until(lambda screen=screen: b"written" in screen.output)  # type: ignore[misc]
        screen.write(f"{ESC}u")
        screen.write("q")
        assert screen.end() == 0
        notices = re.findall(rb"\x07\x1b\]9;([^\x07]*)\x07", screen.output)
        assert [notice.startswith(b"written ") for notice in notices] == [True] * told, notices
        out.unlink()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells the memory of another process")
def test_the_type_picker_measures_in_a_process_of_its_own(model: Path) -> None:
    screen = Screen(model)
    screen.until(lambda: b"blk.0" in screen.output)
    before = megabytes(screen)
    screen.write("ljjt")
    screen.until(lambda: re.search(rb"  0\.\d{4}", screen.output) is not None)
    maps = Path(f"/proc/{screen.process.pid}/maps").read_text()
    assert "python" in maps
    assert "llvmlite" not in maps, "the compiler"
    assert megabytes(screen) < before + 30
    screen.write(f"{ESC}q")
    assert screen.end() == 0


def megabytes(screen: Screen) -> float:
    fields = Path(f"/proc/{screen.process.pid}/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1000


def click(screen: Screen, column: int, line: int) -> None:
    """The codes of a terminal for a click, both counted from 1."""
    screen.write(f"{ESC}[<0;{column};{line}M{ESC}[<0;{column};{line}m")


def test_a_click_on_the_strip_goes_to_a_layer(model: Path, demo_imatrix: Path) -> None:
    screen = Screen(model, "--imatrix", demo_imatrix)
    screen.until(lambda: b"blk.11" in screen.output)
    click(screen, 31, STRIP)
    screen.until(lambda: b"layer 5" in screen.output)
    screen.write("pq")
    assert screen.end() == 0
    assert kept(model).pruned == {5}


def test_the_terminal_is_told_no_more_than_it_must(model: Path) -> None:
    screen = Screen(model)
    screen.until(lambda: b"\x1b]2;surgeon novels-12M-F16.gguf\x07" in screen.output)
    screen.write("q")
    assert screen.end() == 0
    assert b"\x1b[23;2t" in screen.output, "the title there was before"
    assert b"\x1b[?1000h" in screen.output
    assert b"\x1b[?1003h" not in screen.output, "every movement of the mouse"
