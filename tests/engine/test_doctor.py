"""`surgeon doctor`: facts of this machine, and what is missing by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from surgeon import cli
from surgeon.machine import available_cores


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.run(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_facts_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = report(capsys, "--json")
    found = json.loads(text)
    assert code == 0, found
    assert found["processor"]["cores"] == available_cores()
    assert any(device["name"] == "CPU" and device["total"] > 0 for device in found["llama.cpp"]["devices"])
    assert Path(found["folders"]["state"]["folder"]).is_dir()
    assert found["kernels"]["types"] > 20


def test_the_same_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = report(capsys)
    assert code == 0
    assert re.search(r"CPU: .* GiB free of .* GiB", text), "memory is in binary units"
    assert re.search(r"state .* [MGT]B free$", text, re.MULTILINE), "a disk is in decimal ones"
    assert max(map(len, text.splitlines())) < 160


def test_a_missing_engine_is_named_with_the_way_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_DIR", "/nowhere")
    code, text = report(capsys)
    assert code == 1
    assert "problem   /nowhere: no such directory" in text
