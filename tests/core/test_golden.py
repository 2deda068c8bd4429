"""Every golden case: `surgeon quantize --compat` writes what llama-quantize wrote, and refuses what it refused.

Runs in this process, so that the kernels are loaded once; each case in a fresh folder that sees the inputs under their
plain names, because the imatrix's name is stored in the output as it was typed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from surgeon import cli
from surgeon.errors import SurgeonError

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))

import check  # noqa: E402
import runner  # noqa: E402
import toylib  # noqa: E402

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["cases"]


def run_in(folder: Path, models: Path, arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Exit code of one command line, and what it left in `folder` (None for the files of a failed run)."""
    for path in models.iterdir():
        os.symlink(path, folder / path.name)
    sentence = "done"
    try:
        code = cli.run(["quantize", *arguments])
    except SurgeonError as error:
        code, sentence = error.exit_code, str(error)
    assert sentence
    assert "\n" not in sentence
    files = sorted(path for path in folder.iterdir() if not path.is_symlink())
    return code, {path.name: toylib.describe(path) if code == 0 else None for path in files}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_same_as_llama_quantize(
    case: dict[str, Any],
    golden_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, files = run_in(tmp_path, golden_models, ["--compat", *case["args"]])
    told = capsys.readouterr()
    difference = check.compare(case, (code, told.out + told.err, files))
    assert difference is None, difference
    if case["exit"]:
        assert not files, "a failed run leaves no file"
    else:
        expected = [line for line in case["report"] if "dry run" not in line]
        assert [line for line in runner.report_lines(told.out) if "dry run" not in line] == expected


# What llama-quantize refuses and we need not: a shard other than the first opens the whole set, and so on.
ACCEPTED_BY_DEFAULT = {
    "279-fail-override-long",
    "290-fail-input-arch",
    "291-fail-input-nokey",
    "292-fail-input-arraylen",
    "300-fail-shard-second",
    "303-abort-embedding-shape",
}


@pytest.mark.parametrize("case", [case for case in CASES if case["exit"]], ids=lambda case: case["id"])
def test_refused_by_default_too(
    case: dict[str, Any], golden_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, files = run_in(tmp_path, golden_models, case["args"])
    if case["id"] in ACCEPTED_BY_DEFAULT:
        assert code == 0
        assert all(files.values())
    else:
        assert code == 1
        assert not files


def test_all_cases_are_here() -> None:
    assert len(CASES) == 303
    assert sum(case["exit"] != 0 for case in CASES) == 54
