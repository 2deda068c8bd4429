"""`surgeon fit` from measuring to the recipe, on the bundled model and very few tokens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import TEXT

from surgeon.cli import run
from surgeon.engine.protocol import Engine
from surgeon.errors import Cancelled, SurgeonError, UsageError
from surgeon.fit.candidates import TypeSet
from surgeon.gguf.file import open_gguf
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.fitting.sensitivities import Sensitivities
from surgeon.measure.probing import Prober, Text
from surgeon.model.model import load_model
from surgeon.plan.recipe import load_recipe

TYPES = "Q2_K,Q3_K,Q4_K,Q6_K"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved bases go to the test's folder, compiled kernels stay where they are."""
    monkeypatch.setattr("surgeon.measure.probing.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def measured_state(demo_model: Path, demo_imatrix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder after the sensitivities of the bundled model were measured, by the command itself."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setattr("surgeon.measure.probing.cache_folder", lambda: folder / "cache")
        assert run(words(demo_model, demo_imatrix, folder / "first.toml", "--bpw", "4")) == 0
    return folder / "state"


@pytest.fixture
def measured(measured_state: Path, home: Path) -> None:
    """Nothing is left to measure but what a test asks for."""
    shutil.copytree(measured_state, home / "state")


def words(model: Path, imatrix: Path, out: Path, *more: str) -> list[str]:
    shared = ["-f", str(TEXT), "-c", "64", "--chunks", "1", "-t", "1", "--types", TYPES, "--imatrix", str(imatrix)]
    return ["fit", str(model), *shared, "-o", str(out), *more]


@pytest.mark.usefixtures("measured")
def test_a_fit_is_written_and_compared(
    demo_model: Path, demo_imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "other.txt"
    held_out.write_text(TEXT.read_text()[3000:])
    recipe, out = tmp_path / "fit.toml", tmp_path / "fit.gguf"
    extra = ["--held-out", str(held_out), "--held-out-chunks", "2", "--write", str(out), "--json"]
    assert run(words(demo_model, demo_imatrix, recipe, "--like", "Q3_K_M", *extra)) == 0
    first = capsys.readouterr()
    assert "sensitivities" not in first.err
    assert "KL divergence" in first.err
    found: dict[str, Any] = json.loads(first.out)
    assert 0.998 <= found["used"] <= 1
    assert found["fit"]["bytes"] == out.stat().st_size
    assert found["fit"]["predicted"]["kld"] < found["mix"]["predicted"]["kld"]
    assert set(found["held_out"]) == {"fit", found["mix"]["type"]}
    assert 0 < found["held_out"]["fit"]["mean_kld"] < 0.2
    with open_gguf(out) as written:
        types = {info.name: info.type_name for info in written.tensors}
    assert {one["name"]: one["type"] for one in found["tensors"]} == types
    assert dict(load_recipe(recipe).plan.types).items() <= types.items()

    # The second size needs no measuring, and gets a table.
    assert run(words(demo_model, demo_imatrix, tmp_path / "small.toml", "--bpw", "3.2")) == 0
    second = capsys.readouterr()
    assert second.err == ""
    assert "of the size is used" in second.out
    assert "ffn_down" in second.out


def stop_after_three(sensitivities: Sensitivities) -> None:
    for _ in sensitivities.steps():
        if len(sensitivities.probes) == 3:
            sensitivities.prober.cancelled.set()


def test_what_was_measured_before_a_cancel_is_kept(demo_model: Path, demo_imatrix: Path) -> None:
    model = load_model(demo_model)
    with model.file:
        prober = Prober(model, load_imatrix(demo_imatrix), Engine(threads=1))
        stopped = Sensitivities(prober, Text(TEXT, 64, 1), TypeSet.of("Q2_K,Q4_K", fast=False))
        with pytest.raises(Cancelled):
            stop_after_three(stopped)
        kept = dict(stopped.probes)
        again = Sensitivities(
            Prober(model, prober.imatrix, prober.engine), stopped.text, TypeSet.of("Q2_K,Q4_K", fast=False)
        )
        assert not again.load()
        assert again.probes == kept
        assert len(kept) == 3
        other_text = Sensitivities(again.prober, Text(TEXT, 64, 2), again.types)
        assert not other_text.load()
        assert other_text.probes == {}
        assert other_text.errors == again.errors


def test_a_damaged_cache_is_one_line(demo_model: Path, demo_imatrix: Path) -> None:
    model = load_model(demo_model)
    with model.file:
        prober = Prober(model, load_imatrix(demo_imatrix), Engine(threads=1))
        sensitivities = Sensitivities(prober, Text(TEXT, 64, 1))
        sensitivities._errors_file.parent.mkdir(parents=True)
        sensitivities._errors_file.write_text("[1, 2")
        with pytest.raises(SurgeonError, match="remove it, it will be measured again"):
            sensitivities.load()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--size", "5MB", "--held-out", str(TEXT)], "is the calibration text"),
        (["--size", "many"], "not a size"),
        (["--bpw", "-3"], "a number of bits above 0"),
        (["--like", "Q9"], "unknown TYPE 'Q9'"),
        (["--bpw", "4", "--held-out", "SHORT"], r"short.txt: \d+ tokens, but -c 64 needs 128: take a longer text"),
        (["--size", "5MB", "--types", "Q9_Z"], "unknown tensor type"),
        (["--size", "5MB", "--write", "/no/such/folder/x.gguf"], "no such folder"),
    ],
)
def test_what_cannot_go_well_is_refused(
    more: list[str], told: str, demo_model: Path, demo_imatrix: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("short text")
    more = [str(short) if word == "SHORT" else word for word in more]
    with pytest.raises(SurgeonError, match=told):
        run(words(demo_model, demo_imatrix, tmp_path / "r.toml", *more))
    assert not (tmp_path / "r.toml").exists()
    assert not list(tmp_path.glob("home/state/surgeon/fit/*"))  # nothing was measured before


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--size", "1MB"], r"1.00 MB cannot be had; the smallest is 3.95 MB \(2.65 bpw\)"),
        (["--bpw", "20"], r"29.0 MB is more than the model has; the largest is 23.2 MB \(\d+\.\d\d bpw\)"),
    ],
)
def test_a_target_outside_is_refused_with_the_nearest(
    more: list[str], told: str, demo_model: Path, demo_imatrix: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        run(words(demo_model, demo_imatrix, tmp_path / "r.toml", *more))
    nearest = str(refused.value).partition("(")[2].partition(" bpw")[0]
    assert run(words(demo_model, demo_imatrix, tmp_path / "s.toml", "--bpw", nearest)) == 0


def test_an_existing_recipe_is_not_replaced_unasked(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        run(words(demo_model, demo_imatrix, tmp_path / "r.toml", "--size", "5MB"))


@pytest.mark.usefixtures("measured")
def test_a_ladder_is_resumed_where_it_stopped(
    demo_model: Path, demo_imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out, folder = tmp_path / "other.txt", tmp_path / "family"
    held_out.write_text(TEXT.read_text()[3000:])
    folder.mkdir()
    more = ["--held-out", str(held_out), "--held-out-chunks", "1", "--write", str(folder)]
    assert run(words(demo_model, demo_imatrix, folder, "--ladder", "4,3", *more)) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in first] == ["3", "4"]
    assert all("measured" in line for line in first)
    names = {f"{demo_model.stem}-{bpw}bpw.{kind}" for bpw in (3, 4) for kind in ("toml", "gguf")}
    assert {path.name for path in folder.iterdir()} == {*names, f"{demo_model.stem}-card.md"}
    card = (folder / f"{demo_model.stem}-card.md").read_text()
    assert "4 bpw" in card
    assert "other.txt, 1 chunk of 64 tokens" in card
    states = {path: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}

    assert run(words(demo_model, demo_imatrix, folder, "--ladder", "3,3.5,4", *more)) == 0
    second = capsys.readouterr()
    assert second.out.splitlines()[::2] == first
    assert "3.5bpw" in second.err
    assert {path: path.stat().st_mtime_ns for path in states} == states


@pytest.mark.parametrize("text", ["", "a", "0,3"])
def test_a_ladder_that_is_none_is_refused(text: str, demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bits per weight, separated by commas"):
        run(words(demo_model, demo_imatrix, tmp_path, "--ladder", text))


@pytest.mark.usefixtures("measured")
def test_a_card_is_filled_and_one_too_small_is_refused(
    demo_model: Path, demo_imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ["--vram-reserve", "1MiB", "--ctx", "1024", "--cache-type", "q8_0"]
    assert run(words(demo_model, demo_imatrix, tmp_path / "r.toml", "--vram", "24MiB", *card)) == 0
    told = capsys.readouterr().out
    assert "card 24.0 MiB: weights" in told
    assert re.search(r"free (\d+ B|[\d.]+ KiB)$", told, re.MULTILINE)
    assert dict(load_recipe(tmp_path / "r.toml").plan.reasons)["token_embd.weight"].endswith("computer's memory")
    with pytest.raises(UsageError, match=r"leave .*, the smallest weights take .*: about \d of 12 layers would fit"):
        run(words(demo_model, demo_imatrix, tmp_path / "s.toml", "--vram", "17MiB", *card))
