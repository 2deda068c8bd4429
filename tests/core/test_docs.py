"""README and CONTRIBUTING say what the program does: their commands run, their lists and paths are the real ones."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pty
import re
import select
import shutil
import signal
import struct
import sys
import termios
import time
import tomllib
from pathlib import Path

import pytest

from surgeon import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Commands that README lists among the ways to start the screen instead.
SCREEN = {"open", "demo"}
# What names in README's examples stand for.
PLACEHOLDERS = {"model-BF16.gguf": "novels-12M-F16.gguf", "model.imatrix.gguf": "mixed.imatrix.gguf"}


def blocks(text: str) -> list[list[str]]:
    """The indented blocks of a Markdown text, as lines without the indent."""
    found: list[list[str]] = []
    previous = ""
    for line in text.splitlines():
        if line.startswith("    ") and line.strip():
            if not previous.startswith("    "):
                found.append([])
            found[-1].append(line[4:])
        previous = line
    return found


def listed_commands() -> dict[str, str]:
    """Command -> its line in README's list, the first block under its title."""
    lines = blocks(README[README.index("## The command line") :])[0]
    return {line.split()[1]: line for line in lines}


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):
        cli.run([command, "--help"])
    return capsys.readouterr().out


def test_the_list_of_commands_is_complete() -> None:
    assert set(listed_commands()) == set(cli.COMMANDS) - SCREEN


@pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - SCREEN))
def test_what_the_list_says_of_a_command_is_in_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    assert text, "no help"
    usage = re.split(r" {2,}", listed_commands()[command])[0]
    for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), (
            f"{option} is not in surgeon {command} --help"
        )


def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert getattr(names["blocks"], "shape", None) == (64, 2304)


def examples() -> list[str]:
    """The command lines of README whose inputs the tests have; others show options of long runs."""
    lines = [line for block in blocks(README) for line in block]
    return [line for line in lines if "model-BF16.gguf" in line and re.match(r"surgeon [a-z-]+ ", line)]


def test_there_are_examples_to_run() -> None:
    assert any(line.startswith("surgeon quantize --imatrix") for line in examples())


@pytest.mark.parametrize("line", examples())
def test_the_examples_run(
    line: str, tmp_path: Path, demo_model: Path, demo_imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    for name, source in zip(PLACEHOLDERS, (demo_model, demo_imatrix), strict=True):
        shutil.copy(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    words = [re.sub(r"^26,29$", "6,9", word) for word in shlex.split(line)[1:]]  # the bundled model has 12 layers
    assert cli.run(words) == 0
    if "out.gguf" in words:
        assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_the_screen_of_the_first_command_starts() -> None:
    """`surgeon demo` on a terminal of 80x24: the tree is there, q leaves with exit code 0."""
    assert "surgeon demo" in README
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels")))}
        os.execv(sys.executable, [sys.executable, "-m", "surgeon", "demo"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        shown = _read_until(terminal, b"blk.", 120)
        assert b"blk." in shown, shown[-2000:]
        os.write(terminal, b"q")
        _read_until(terminal, b"\x00nothing", 30)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def _read_until(terminal: int, wanted: bytes, seconds: float) -> bytes:
    shown, end = b"", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 1 << 16)
            except OSError:  # the program has gone
                break
    return shown


# ------------------------------------------------------------------ paths


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_path_that_is_named_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])(?:surgeon|kernels|tests|screenshots)/[\w./-]*\w/?", text))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert named
    assert not missing


def test_every_room_has_its_row() -> None:
    rows = set(re.findall(r"^\| `([\w/]+)/`", CONTRIBUTING, re.MULTILINE))
    rows |= set(re.findall(r"`(surgeon/commands)/`", CONTRIBUTING))
    packages = {
        str(path.parent.relative_to(ROOT))
        for top in ("surgeon", "kernels")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert rows >= packages - {"surgeon"}


def test_links_within_the_readme_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_every_picture_is_an_svg_and_a_small_png() -> None:
    folder = ROOT / "screenshots"
    drawn, rendered = ({path.stem for path in folder.glob(f"*.{kind}")} for kind in ("svg", "png"))
    assert drawn == rendered
    assert {path.name: path.stat().st_size for path in folder.glob("*.png") if path.stat().st_size > 150_000} == {}


def test_ci_runs_the_readmes_test_command() -> None:
    (command,) = [line for block in blocks(README) for line in block if line.endswith("pytest -n 2")]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_extras_that_are_named_exist() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    named = set(re.findall(r"\.\[(\w+)\]|extra `(\w+)`", README))
    assert {first or second for first, second in named} <= extras


def test_every_command_imports() -> None:
    for module, _ in cli.COMMANDS.values():
        assert callable(importlib.import_module(module).main)
