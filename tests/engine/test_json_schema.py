"""surgeon/commands/json.md says what every command prints with --json, and every command prints that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experts as toys
from engine_helpers import TEXT

from surgeon.cli import run
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, save

PAGE = Path(__file__).parents[2] / "surgeon" / "commands" / "json.md"
DEMO = Path(__file__).parents[2] / "surgeon" / "demo"
IMATRIX = str(DEMO / "mixed.imatrix.gguf")
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "number": (int, float),
    "bool": (bool,),
    "list": (list,),
    "object": (dict,),
}
SHORT = ["-f", str(TEXT), "-c", "16", "-t", "1"]
FOUR_TIMES = ["-f", str(TEXT)] * 4  # four tokens a column are the fewest to heal on
FEW = [*SHORT, "--chunks", "1", "--types", "Q2_K,Q4_K,Q6_K"]
COMMANDS: dict[str, list[str]] = {
    "show": ["show", "MODEL"],
    "show --tensor": ["show", "--tensor", "blk.0.ffn_down.weight", "MODEL"],
    "show --imatrix": ["show", "--imatrix", IMATRIX, "MODEL"],
    "stats": ["stats", IMATRIX],
    "stats --experts": ["stats", "--experts", "EXPERTS"],
    "verify": ["verify", "MODEL"],
    "diff": ["diff", "MODEL", "MODEL"],
    "quantize": ["quantize", "--json", "--dry-run", "--imatrix", IMATRIX, "MODEL", "Q4_K_M"],
    "imatrix": ["imatrix", "-m", "MODEL", *SHORT, "--chunks", "2", "-o", "OUT"],
    "perplexity": ["perplexity", "-m", "MODEL", *SHORT, "--chunks", "2", "--journal", "MODEL"],
    "perplexity --embedding": ["perplexity", "-m", "MODEL", "--embedding", "MODEL", *SHORT, "--chunks", "2"],
    "bench": ["bench", "-m", "MODEL", "-p", "4", "-n", "1", "-r", "1", "-t", "1"],
    "prune-scan": ["prune-scan", "-m", "MODEL", *SHORT, "--chunks", "1", "--layers", "3", "--restart"],
    "expert-scan": ["expert-scan", "-m", "MOE", "--imatrix", "EXPERTS", *SHORT, "--chunks", "1", "--shares", "25"],
    "fit": ["fit", "TWO", "--like", "Q4_K_M", *FEW, "-o", "OUT"],
    "fit --ladder": ["fit", "TWO", "--ladder", "3,4", *FEW, "-o", "FOLDER"],
    "heal": ["heal", "MODEL", "--prune-layers", "11", *FOUR_TIMES, "-c", "64", "-t", "1", "-o", "OUT", "--overwrite"],
    "journal": ["journal", "MODEL"],
    "doctor": ["doctor"],
}


def schema(command: str) -> dict[str, dict[str, str]]:
    """Part ('' for the top, `tensors[]`, `imatrix`) -> key -> type, as the page has it."""
    section = PAGE.read_text().split(f"\n## {command}\n")[1].split("\n## ")[0]
    parts: dict[str, dict[str, str]] = {}
    for line in re.findall(r"^    (.+)$", section, re.MULTILINE):
        words = line.split(", ")[0].split(" ")
        part = words[0] if len(words) == 3 else ""
        for pair in line.removeprefix(f"{part} " if part else "").split(", "):
            key, kind = pair.split(" ")
            parts.setdefault(part, {})[key] = kind
    return parts


def check(value: dict[str, Any], keys: dict[str, str], *, more: bool = False) -> None:
    assert more or set(value) == set(keys)
    for key, kind in keys.items():
        found = value[key]
        if kind.endswith("?") and found is None:
            continue
        assert isinstance(found, TYPES[kind.rstrip("?")]), (key, found)
        assert kind.rstrip("?") == "bool" or not isinstance(found, bool), (key, found)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def moe(state: Path, demo_model: Path) -> dict[str, str]:
    """A model with experts, and an imatrix that knows them."""
    model = toys.write_reading(toys.mixtral(), state / "moe.gguf", demo_model)
    calls = np.ones((3, toys.COUNT))
    entries = {"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 64), np.float32), np.array([64]))}
    imatrix = Imatrix(state / "experts.gguf", entries, ("text",), 1, 64)
    save(imatrix, Influence(np.ones((3, 5)), experts=ExpertSums(calls, calls, calls)), imatrix.path)
    return {"MOE": str(model), "EXPERTS": str(imatrix.path)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_what_the_page_says(
    command: str,
    demo_model: Path,
    two_layers: Path,
    moe: dict[str, str],
    state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(state))
    files = {"MODEL": str(demo_model), "TWO": str(two_layers), "OUT": str(state / f"{command}.gguf")} | moe
    files["FOLDER"] = str(state)
    words = [files.get(word, word) for word in COMMANDS[command]]
    if "--json" not in words:
        words.append("--json")
    if command == "journal":  # it needs a trial
        run(["perplexity", "-m", str(demo_model), *SHORT, "--chunks", "2", "--journal", str(demo_model)])
        capsys.readouterr()
    run(words)
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    parts = schema(command)
    for item in printed if isinstance(printed, list) else [printed]:
        top = {
            part.removesuffix("[]"): "list" if part.endswith("[]") else "object" for part in parts if part.strip("[]<>")
        }
        if "<>" not in parts:
            check(item, parts.get("", {}) | parts.get("[]", {}) | top)
        for part, keys in parts.items():
            inner = item.get(part.removesuffix("[]"))
            members = item.values() if part == "<>" else inner if part.endswith("[]") and part != "[]" else [inner]
            for member in members if part not in ("", "[]") else ():
                check(member, keys, more=part == "<>")


def test_the_page_knows_every_command_with_json() -> None:
    sections = set(re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE))
    assert sections == set(COMMANDS)
