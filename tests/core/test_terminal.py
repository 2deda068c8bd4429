"""What others wrote reaches the terminal escaped: from every command, on both streams, however it gets there."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from gguf_builder import build_gguf

from surgeon.json_text import json_text, read_json
from surgeon.llama_quantize.translation import from_command
from surgeon.plan.plan import Plan, TypeRule
from surgeon.plan.recipe import Recipe, read_recipe, to_toml
from surgeon.terminal import EscapingStream, cell, escaped, redraw
from surgeon.tui.drawing.canvas import merged

NASTY = "a\x1b[31m\x9b2J\u202egnp\nsurgeon: ok\r\x07\u2066b"
SHOWN = r"a\x1b[31m\x9b2J\u202egnp\nsurgeon: ok\r\x07\u2066b"
OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
ROOT = Path(__file__).parent.parent.parent


def surgeon(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surgeon", *arguments]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    environment |= {"PYTHONUTF8": "1", "SURGEON_CACHE_DIR": str(cwd / "cache")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_escaped_is_one_line_and_keeps_what_is_harmless() -> None:
    assert escaped(NASTY) == SHOWN
    assert escaped("tab\tÄ 中文 \U0001f600 nbsp\xa0") == "tab\tÄ 中文 \U0001f600 nbsp\xa0"
    assert cell("tab\t") == r"tab\t"
    assert escaped("\udcff\U000e0041") == r"\udcff\U000e0041"
    every = "".join(map(chr, range(0x110000)))
    obeyed = {c for c in every if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\t"}
    assert not obeyed & set(escaped(every))
    assert all(escaped(sign) != sign for sign in obeyed)
    assert escaped(escaped(every)) == escaped(every)


def test_a_stream_lets_lines_and_redrawing_through_and_nothing_else() -> None:
    plain = io.StringIO()
    stream = EscapingStream(plain)
    print("one\ntwo", NASTY, file=stream)  # type: ignore[call-overload]
    redraw(stream, NASTY)  # type: ignore[arg-type]
    assert plain.getvalue() == f"one\ntwo {SHOWN.replace(chr(92) + 'n', chr(10))}\n\r\x1b[K{SHOWN}"


def test_a_line_that_is_rewritten_is_never_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    redraw(stream, "perplexity: 3/100 chunks")
    redraw(stream, "a line that stays may be longer", end="\n")
    assert stream.getvalue() == "\r\x1b[Kperplexity: 3/100 c\r\x1b[Ka line that stays may be longer\n"


def test_what_a_widget_draws_is_clean() -> None:
    assert merged([(NASTY, "text")]) == [(SHOWN, "text")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an imatrix and a recipe, in whose names and values is everything a terminal obeys."""
    folder = tmp_path_factory.mktemp("terminal") / NASTY
    folder.mkdir()
    kv = {"general.architecture": "llama", "general.name": NASTY, "llama.block_count": 1, "general.tags": NASTY}
    tensors = {"blk.0.attn_q.weight": ("F16", (32, 4)), "token_embd.weight": ("F16", (32, 4))}
    build_gguf(folder / f"{NASTY}.gguf", kv, tensors)
    rule = TypeRule(NASTY.replace("[", "").replace("\n", ""), "Q8_0")
    plan = Plan(file_type="Q8_0", rules=(rule,), imatrix_file=NASTY, types=((NASTY, "Q8_0"),))
    (folder / f"{NASTY}.toml").write_text(to_toml(Recipe(plan)))
    shutil.copyfile(ROOT / "surgeon" / "demo" / "mixed.imatrix.gguf", folder / f"{NASTY}.imatrix")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["show", "MODEL"],
        ["show", "--imatrix", "IMATRIX", "MODEL"],
        ["show", "RECIPE"],
        ["verify", "MODEL"],
        ["verify", "--json", "MODEL"],
        ["verify", "--imatrix", "IMATRIX", "MODEL"],
        ["verify", "MODEL", NASTY],
        [NASTY],
        ["stats", "IMATRIX"],
        ["stats", "MODEL"],
        ["export", "RECIPE"],
        ["export", "--model", "MODEL", "RECIPE"],
        ["export", "--command", f"llama-quantize --tensor-type '{NASTY}=q8_0' x.gguf Q4_K_M"],
        ["apply", "--dry-run", "RECIPE", "MODEL"],
        ["apply", "--dry-run", "--json", "RECIPE", "MODEL"],
        ["quantize", "--dry-run", "--tensor-type", f"{NASTY}=q8_0", "MODEL", "Q8_0"],
        ["quantize", f"--{NASTY}", "MODEL", "Q8_0"],
        ["quantize", "--override-kv", NASTY, "MODEL", "Q8_0"],
        ["quantize", "MODEL", NASTY, "COPY"],
        ["perplexity", "-m", "MODEL", "-f", NASTY],
        ["imatrix", "--in-file", "IMATRIX", "-o", f"{NASTY}.out"],
        ["journal", "MODEL"],
    ],
)
def test_no_command_lets_a_terminal_obey(folder: Path, words: list[str]) -> None:
    names = {"MODEL": f"{NASTY}.gguf", "IMATRIX": f"{NASTY}.imatrix", "RECIPE": f"{NASTY}.toml"}
    done = surgeon(*(names.get(word, word) for word in words), cwd=folder)
    both = done.stdout + done.stderr
    assert both
    assert "Traceback" not in both
    assert not OBEYED.search(both), both
    assert not [line for line in both.splitlines() if line.startswith("surgeon: ok")], both


def test_an_exported_command_is_still_the_recipes(folder: Path) -> None:
    """bash reads `$'…'` back into the very pattern."""
    done = surgeon("export", f"{NASTY}.toml", cwd=folder)
    words = subprocess.run(
        ["bash", "-c", f"set -- {done.stdout}\nprintf '%s\\0' \"$@\""], capture_output=True, check=True, cwd=folder
    ).stdout
    pattern = NASTY.replace("[", "").replace("\n", "")
    assert f"{pattern}=q8_0" in words.decode().split("\0")


def test_a_recipes_text_is_harmless_and_reads_back() -> None:
    plan = Plan(file_type="Q8_0", imatrix_file=NASTY + "\U000e0041", types=((NASTY, "Q8_0"),))
    text = to_toml(Recipe(plan))
    assert not OBEYED.search(text)
    assert read_recipe(text, Path()).plan == plan
    command = shlex.join(["llama-quantize", "--include-weights", NASTY, "x.gguf", "Q8_0"])
    assert from_command(command).plan.include_weights == (NASTY,)


def test_json_is_json() -> None:
    value = {"a": [math.nan, 1.5, {"b": (math.inf, -math.inf, NASTY)}], "c": True, "d": 10**30}
    expected = {"a": [None, 1.5, {"b": [None, None, NASTY]}], "c": True, "d": 10**30}
    assert json.loads(json_text(value)) == expected
    assert json_text(value).isascii()
    assert read_json("[NaN, -Infinity, 1]") == [None, None, 1]
    for bad in ("[" * 100_000, "1" * 5000, b"\xff\xfe\0", "", "{]"):
        with pytest.raises(ValueError, match=r".+"):
            read_json(bad)


def test_only_one_place_writes_escape_sequences() -> None:
    """A second one would be shown to the user as `\\x1b[K`."""
    found = [
        path.name
        for path in (ROOT / "surgeon").rglob("*.py")
        if "\\x1b[" in path.read_text() and "tui" not in path.parts
    ]
    assert found == ["terminal.py"]


def test_no_command_writes_json_of_its_own() -> None:
    found = [path.name for path in (ROOT / "surgeon" / "commands").rglob("*.py") if "json.dumps" in path.read_text()]
    assert found == []
