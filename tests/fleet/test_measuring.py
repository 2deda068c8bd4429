"""Measurements over workers give what this machine alone gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experts
from engine_helpers import TEXT

from surgeon.commands import expert_scan, fit, imatrix, perplexity, prune_scan
from surgeon.engine.protocol import Engine
from surgeon.fleet import probes
from surgeon.fleet.probes import Subject
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.influence import save

ONE_THREAD = ["-t", "1"]


def test_a_scan_is_one_task_a_candidate(
    demo_model: Path, scheduler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    command = ["-m", str(demo_model), "-f", str(TEXT), "-c", "64", "--chunks", "4", "--json", *ONE_THREAD]

    def damages(state: str, *options: str) -> list[dict[str, Any]]:
        monkeypatch.setenv("XDG_STATE_HOME", str(home / state))
        assert prune_scan.main([*command, "--layers", "3,8,3+8", *options]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["damages"]
        return found

    alone = damages("alone")
    assert damages("fleet", "--scheduler", scheduler) == alone
    # What was measured is kept: nothing is asked of the workers any more.
    assert damages("fleet", "--scheduler", "none") == alone


def test_a_scan_of_experts_is_one_task_a_cut(
    demo_model: Path, scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toy_experts.write_reading(toy_experts.mixtral(), tmp_path / "moe.gguf", demo_model)
    command = ["-m", str(model), "-f", str(TEXT), "-c", "64", "--chunks", "2", *ONE_THREAD]
    assert imatrix.main([*command, "-o", str(tmp_path / "im.gguf")]) == 0

    def cuts(*options: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        wanted = ["--imatrix", str(tmp_path / "im.gguf"), "--shares", "25,50", "--json", "--restart"]
        assert expert_scan.main([*command, *wanted, *options]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["cuts"]
        return found

    assert len(alone := cuts()) == 5
    assert cuts("--scheduler", scheduler) == alone


def test_an_imatrix_has_the_same_bits_in_blocks_here_and_there(
    demo_model: Path, scheduler: str, tmp_path: Path
) -> None:
    def collected(name: str, *options: str) -> list[bytes]:
        out, moments = tmp_path / f"{name}.gguf", tmp_path / f"{name}.moments.gguf"
        command = ["-m", str(demo_model), "-f", str(TEXT), "-c", "64", "-b", "128", "--chunks", "7", *ONE_THREAD]
        assert imatrix.main([*command, "-o", str(out), "--moments", str(moments), *options]) == 0
        assert not list(tmp_path.glob(f"{name}.gguf.*"))
        return [out.read_bytes(), moments.read_bytes()]

    here = collected("here", "--block-chunks", "3")  # raised to 4, whole batches of two
    assert collected("there", "--block-chunks", "3", "--scheduler", scheduler) == here


def test_fit_finds_the_same_types(demo_model: Path, scheduler: str, tmp_path: Path, home: Path) -> None:
    command = [
        str(demo_model), "-f", str(TEXT), "-c", "64", "--chunks", "2", "--bpw", "6", "--types", "Q4_K,Q8_0", *ONE_THREAD
    ]  # fmt: skip

    def measured(name: str, *options: str) -> list[Any]:
        state = home / "state" / "surgeon" / "fit"
        assert fit.main([*command, "-o", str(tmp_path / f"{name}.toml"), *options]) == 0
        found = [json.loads(path.read_text()) for path in sorted(state.glob("*.json"))]
        for path in state.glob("*.json"):
            path.unlink()
        return found

    there = measured("there", "--scheduler", scheduler)
    assert len(there) == 2
    assert measured("here") == there
    assert (tmp_path / "here.toml").read_text() == (tmp_path / "there.toml").read_text()


def test_perplexity_and_divergence_are_those_of_one_machine(
    demo_model: Path, scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", str(demo_model), "-c", "64", "-b", "128", "--chunks", "11", "--json", *ONE_THREAD]
    here, there = tmp_path / "here.kld", tmp_path / "there.kld"

    def figures(*options: str) -> dict[str, Any]:
        assert perplexity.main([*command, *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    text = ["-f", str(TEXT)]
    alone = figures(*text, "--kl-divergence-base", str(here))
    assert figures(*text, "--kl-divergence-base", str(there), "--scheduler", scheduler) == alone
    assert there.read_bytes() == here.read_bytes()
    compared = ["--kl-divergence-base", str(here), "--kl-divergence", "-ub", "32"]
    assert figures(*compared, "--scheduler", scheduler) == figures(*compared)


def test_workers_judge_an_imatrix_as_the_screen_does(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    """An entry that cannot be used is for the plan to leave out, not a reason to measure nothing."""
    imatrix = load_imatrix(demo_imatrix)
    name = next(iter(imatrix.entries))
    imatrix.entries[name].sums[0, 0] = np.nan
    damaged = tmp_path / "damaged.gguf"
    save(imatrix, None, damaged)
    prober = probes._prober(Subject(str(demo_model), str(damaged), None, None, 1, ""), Engine())
    assert prober.imatrix is not None
    assert [*prober.imatrix.bad] == [name]
