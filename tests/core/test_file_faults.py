"""Killed, or refused by the system, at any file call: no wrong file under any name, and a line that names the file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from file_faults import WAYS, moments_of, plain
from gguf_builder import toy_llama

from surgeon.write import operation

EVERY = {"imatrix": 1, "recipe": 1, "base": 1}  # few calls: all of them


def tried(model: Path, way: str, every: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing costs nothing
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        plain(model, Path(folder))  # loads the kernels, once for all children
        first, *found = moments_of(way, model, Path(folder), every)
    return first, found


def check(way: dict[str, Any], moment: dict[str, Any]) -> None:
    """What must hold after any disturbance, and when the same is run again after a kill: then nothing is left over."""
    new, there = way["new"], way["there"]
    untouched = dict.fromkeys(new, "old") if there else {}
    after = moment["after"]
    assert all(after.get(name) in (untouched.get(name), new[name]) for name in new), moment
    assert set(after) <= set(new), moment
    if moment["kind"] == "kill":
        # Between two renames some are new already; the next run of the same completes them, told or not told to resume.
        assert moment["again"] == 0 or ("already exists" in moment["trouble"] and after == new), moment
        assert moment["end"] == new, moment
        assert moment["left"] == [] or moment["again"] != 0, moment
        return
    assert after in (untouched, new), moment  # both or neither
    if moment["status"] == 1:
        assert after == untouched or "already" in moment["error"], moment
        assert any(name in moment["error"] for name in (*new, "in.gguf", "toy.gguf")), moment
        assert "\n" not in moment["error"], moment
    else:
        assert (moment["status"], moment["error"], after) == (0, "", new), moment


@pytest.mark.parametrize("name", WAYS)
def test_killed_or_failing_at_any_file_call(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("TICK", "CHECKPOINT_SECONDS"):  # which the ways change: to be set back afterwards
        monkeypatch.setattr(operation, constant, getattr(operation, constant))
    model = toy_llama(tmp_path / "in.gguf", layers=2)
    before = model.read_bytes()
    way, moments = tried(model, name, EVERY.get(name, 25))
    assert len(moments) >= 3
    for moment in moments:
        check(way, moment)
    assert model.read_bytes() == before
