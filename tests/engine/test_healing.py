"""Healing from text to heal file to healed model: on toys of many architectures and on the bundled model."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_experts
from engine_helpers import ONE_THREAD, TEXT, at_each
from toy_architectures import FF, Toy, cohere2, gemma, llama

from surgeon import cli
from surgeon.engine.child.healing.job import FEWEST_FOR_STACK
from surgeon.engine.child.healing.store import Store
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import HealedMatrix
from surgeon.errors import SurgeonError
from surgeon.gguf.file import open_gguf
from surgeon.healing.heal_file import HeldOut, load_heal
from surgeon.measure.healing.heal_check import HeldOutCheck
from surgeon.measure.healing.heal_run import HealRequest, HealRun
from surgeon.measure.progress import Standing
from surgeon.model.model import Model, load_model
from surgeon.plan.plan import Healing, Plan
from surgeon.resolve.resolve import resolve

CHUNK = 32


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Letters, enough for 24 tokens a column of the toys' matrices."""
    letters = random.Random(5)
    path = tmp_path / "toy.txt"
    path.write_text("".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=30 * FF)))
    return path


def healed(model: Path, pruned: set[int], text: Path, **options: object) -> tuple[HealRun, list[HealedMatrix]]:
    """Heal and return the run with what it said about each matrix; the file is `out` beside the text."""
    cache = text.parent / "cache"
    cache.mkdir(exist_ok=True)
    opened = load_model(model)
    with opened.file:
        request = HealRequest(
            opened, frozenset(pruned), (text,), text.parent / "out.heal.gguf", n_ctx=CHUNK, per_column=24
        )
        run = HealRun(replace(request, **options), ONE_THREAD, cache)  # type: ignore[arg-type]
        found = [item for item in run.steps() if isinstance(item, HealedMatrix)]
    assert not list(cache.glob("trial-*"))
    return run, found


def planned(model: Model, heal: Path, pruned: set[int], **options: object) -> Plan:
    plan = Plan(pruned=frozenset(pruned), healing=Healing(str(heal), load_heal(heal).id), know_risks=True)
    return replace(plan, **options)  # type: ignore[arg-type]


def names(found: list[HealedMatrix]) -> list[tuple[int, str]]:
    return [(one.layer, one.kind) for one in found]


ATTENTION, FEED_FORWARD = "attn_output", "ffn_down"


@pytest.mark.parametrize("toy", [llama(), gemma("gemma2", 6), gemma("gemma3", 6)], ids=["llama", "gemma2", "gemma3"])
def test_every_matrix_behind_the_gap_is_refitted(toy: Toy, tmp_path: Path, text: Path) -> None:
    model = toy.write(tmp_path / "toy.gguf")
    run, found = healed(model, {2, 3}, text)
    assert names(found) == [
        (1, FEED_FORWARD), (4, ATTENTION), (4, FEED_FORWARD), (5, ATTENTION), (5, FEED_FORWARD),
    ]  # fmt: skip
    assert all(one.after <= one.before for one in found)
    assert found[0].after < 0.9 * found[0].before
    assert run.origin is not None
    assert run.origin.tokens >= 24 * FF


def test_two_gaps_and_the_last_layer(tmp_path: Path, text: Path) -> None:
    model = llama().write(tmp_path / "toy.gguf")
    _, found = healed(model, {2, 5}, text, before_only=True)
    assert names(found) == [(1, FEED_FORWARD), (4, FEED_FORWARD)]


def test_nothing_comes_before_the_first_layer(tmp_path: Path, text: Path) -> None:
    model = llama(layers=3).write(tmp_path / "toy.gguf")
    _, found = healed(model, {0}, text)
    assert names(found) == [(1, ATTENTION), (1, FEED_FORWARD), (2, ATTENTION), (2, FEED_FORWARD)]


def test_few_tokens_heal_only_before_the_gap(tmp_path: Path, text: Path) -> None:
    model = llama(layers=4).write(tmp_path / "toy.gguf")
    run, found = healed(model, {1}, text, per_column=6.0)
    assert run.before_only
    assert names(found) == [(0, FEED_FORWARD)]


def test_too_few_tokens_are_refused(tmp_path: Path, text: Path) -> None:
    model = llama(layers=4).write(tmp_path / "toy.gguf")
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:100])
    with pytest.raises(EngineError, match=rf"short.txt: \d+ tokens are [\d.]+ for each of {FF} columns.*at least 4"):
        healed(model, {1}, short)
    assert not (tmp_path / "out.heal.gguf").exists()


def qwen3moe() -> Toy:
    toy = toy_experts.qwen3moe()
    toy.keys["expert_used_count"] = 3
    return toy


ALIKE = {
    "mixtral": toy_experts.mixtral,
    "qwen2moe": toy_experts.qwen2moe,
    "qwen3moe": qwen3moe,
    "gpt-oss": toy_experts.gpt_oss,
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_written_experts_are_those_that_ran(name: str, tmp_path: Path) -> None:
    # Shared experts, biases: whatever else the layer adds stays as it is.
    model, text, heal = tmp_path / "toy.gguf", tmp_path / "long.txt", tmp_path / "out.heal.gguf"
    ALIKE[name]().write(model)
    text.write_text("".join(random.Random(5).choices("abcdefghijklmnopqrstuvwxyz ", k=100 * FF)))
    probe = Path(__file__).with_name("heal_probe.py")
    command = [sys.executable, str(probe), str(tmp_path / "out.npz"), str(model), str(text), str(heal)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    opened = load_heal(heal)
    first = opened.origin.refits[0]
    assert first.name == "blk.0.ffn_down_exps.weight"
    assert first.after < 0.95 * first.before
    assert "of 16 experts" in first.note
    assert first.name in opened.tensors
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["written"], found["running"], atol=2e-3)
    assert np.abs(found["written"] - found["pruned_away"]).max() > 0.1


def test_experts_that_few_tokens_reach_are_left_and_counted(tmp_path: Path, text: Path) -> None:
    model = tmp_path / "toy.gguf"
    toy_experts.mixtral().write(model)
    _, found = healed(model, {1}, text, before_only=True)  # 1,920 tokens, two experts of 16 each
    (one,) = found
    assert (one.layer, one.kind) == (0, "ffn_down_exps")
    refitted, few = (int(number) for number in re.findall(r"(\d+) (?:of|got)", one.note))
    assert 0 < few < 16
    assert 0 < refitted <= 16 - few
    with open_gguf(model) as source, open_gguf(tmp_path / "out.heal.gguf") as matrices:
        (old, new) = (
            np.frombuffer(file.data(info), np.float32).reshape(16, FF, FF)
            for file in (source, matrices)
            for info in file.tensors
            if info.name == "blk.0.ffn_down_exps.weight"
        )
    assert np.count_nonzero((old != new).any(axis=(1, 2))) == refitted


def test_experts_are_left_where_that_is_asked_for(tmp_path: Path, text: Path) -> None:
    model = toy_experts.mixtral().write(tmp_path / "toy.gguf")
    run, found = healed(model, {1}, text, experts=False)
    assert names(found) == [(2, ATTENTION)]
    assert run.cost().per_expert is None


def test_a_dry_run_tells_what_reaches_an_expert(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "toy.gguf"
    toy_experts.mixtral().write(model)
    command = ["heal", str(model), "--prune-layers", "1", "-f", str(text), "-o", str(tmp_path / "out"), "--dry-run"]
    assert cli.run(command) == 0
    tokens = text.stat().st_size / 3.5  # of a byte-pair vocabulary; this one has a token for each letter
    assert f"and {tokens * 2 / 16 / FF:.1f} a column of an expert's" in capsys.readouterr().err


def test_the_help_names_what_too_few_tokens_and_a_worse_text_change(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["heal", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"below {FEWEST_FOR_STACK:g} as --before-only" in told
    assert "worse only the matrices before the gaps are kept, or nothing is written" in told


def test_experts_behind_a_norm_are_left_with_the_reason(tmp_path: Path, text: Path) -> None:
    # afmoe has dense layers first, and a norm behind the experts: their sum is not what is added.
    model = toy_experts.afmoe().write(tmp_path / "toy.gguf")
    _, found = healed(model, {2}, text, before_only=True)
    (one,) = found
    assert (one.layer, one.kind, one.method) == (1, "ffn_down_exps", "kept")
    assert one.note == "what its experts give is not simply weighed and added to the stream in this architecture"


def test_a_healed_tensor_is_written_in_the_place_of_the_old_one(tmp_path: Path, text: Path) -> None:
    path = llama(layers=4).write(tmp_path / "toy.gguf")
    healed(path, {2}, text)
    out, heal = tmp_path / "out.gguf", tmp_path / "out.heal.gguf"
    command = ["quantize", "--prune-layers", "2", "--heal", str(heal), str(path), str(out), "COPY", "1"]
    assert cli.run(command) == 0
    with open_gguf(out) as written, open_gguf(path) as source, open_gguf(heal) as matrices:
        kept = {info.name: written.data(info).tobytes() for info in written.tensors}
        old = {info.name: source.data(info).tobytes() for info in source.tensors}
        new = {info.name: matrices.data(info).tobytes() for info in matrices.tensors}
        assert written.kv["surgeon.healed"].decode() == sorted(new)
        assert written.kv["surgeon.healed.tokens"].decode() >= 24 * FF
    assert kept["blk.1.ffn_down.weight"] == new["blk.1.ffn_down.weight"] != old["blk.1.ffn_down.weight"]
    assert kept["blk.1.ffn_up.weight"] == old["blk.1.ffn_up.weight"]
    if "blk.3.attn_output.weight" in new:
        assert kept["blk.2.attn_output.weight"] == new["blk.3.attn_output.weight"]


def test_a_heal_file_of_another_model_or_prune_is_refused(tmp_path: Path, text: Path) -> None:
    path = llama(layers=4).write(tmp_path / "toy.gguf")
    other = llama(layers=5).write(tmp_path / "other.gguf")
    healed(path, {2}, text, before_only=True)
    heal = tmp_path / "out.heal.gguf"
    for model, pruned, message in (
        (path, {1}, "was made for pruning layers 2, the plan prunes layers 1"),
        (path, set(), "was made for pruning layers 2, the plan prunes nothing"),
        (other, {2}, r"was made for another model \(toy.gguf\)"),
    ):
        opened = load_model(model)
        resolution = resolve(opened, planned(opened, heal, pruned))
        assert [problem for problem in resolution.errors if message.replace("\\", "") in problem.text]
        assert resolution.heal is None
    opened = load_model(path)
    wrong = resolve(opened, planned(opened, heal, {2}, healing=Healing(str(heal), "0" * 64)))
    assert "its id differs" in wrong.errors[0].text
    compat = resolve(opened, planned(opened, heal, {2}, compat=True))
    assert "llama-quantize heals nothing" in compat.errors[0].text
    model_file = resolve(opened, Plan(pruned=frozenset({2}), healing=Healing(str(path), "0")))
    assert "not a heal file" in model_file.errors[0].text


def test_the_reason_says_how_much_is_healed(tmp_path: Path, text: Path) -> None:
    path = llama(layers=4).write(tmp_path / "toy.gguf")
    healed(path, {2}, text, before_only=True)
    opened = load_model(path)
    resolution = resolve(opened, planned(opened, tmp_path / "out.heal.gguf", {2}))
    (op,) = [op for op in resolution.ops if op.healed is not None]
    assert op.source == "blk.1.ffn_down.weight"
    assert op.reason.startswith("healed: −")
    assert any("healed: 1 tensor," in problem.text for problem in resolution.problems)


def test_a_recipe_keeps_the_heal_file(tmp_path: Path, text: Path) -> None:
    path = llama(layers=4).write(tmp_path / "toy.gguf")
    healed(path, {2}, text, before_only=True)
    heal = tmp_path / "out.heal.gguf"
    recipe = tmp_path / "recipe.toml"
    number = load_heal(heal).id
    recipe.write_text(f'format = 1\ntype = "COPY"\nprune = [2]\n[heal]\nfile = "out.heal.gguf"\nid = "{number}"\n')
    assert cli.run(["apply", str(recipe), str(path), str(tmp_path / "a.gguf"), "--threads", "1"]) == 0
    moved = heal.rename(tmp_path / "moved.gguf")
    command = ["apply", str(recipe), str(path), str(tmp_path / "b.gguf"), "--threads", "1"]
    with pytest.raises(SurgeonError, match=r"out\.heal\.gguf: cannot be read"):
        cli.run(command)
    assert cli.run([*command, "--heal", str(moved)]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_bundled_model_is_nearer_to_itself_when_healed(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words, dice = TEXT.read_text().split(), random.Random(2)
    text = tmp_path / "shuffled.txt"
    text.write_text(" ".join(dice.choice(words) for _ in range(3500)))
    out = tmp_path / "out.heal.gguf"
    command = ["heal", str(demo_model), "--prune-layers", "10", "-f", str(text), "-o", str(out), "-c", "64", "-t", "1"]
    assert cli.run([*command, "--held-out", str(TEXT), "--held-out-chunks", "4", "--json"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["held_out"]
    assert measured["text"] == TEXT.name
    assert measured["healed"] < 0.9 * measured["plain"]
    assert load_heal(out).origin.held_out[0].healed == pytest.approx(measured["healed"], rel=1e-5)
    with pytest.raises(SurgeonError, match="is the text that is fitted"):
        cli.run([*command, "--overwrite", "--held-out", str(text)])


def measuring(monkeypatch: pytest.MonkeyPatch, *healed_klds: float) -> None:
    """The plain prune measures 0.1, the healed models one after the other as given."""
    left = list(healed_klds)

    def compared(_self: HeldOutCheck, _healing: Healing) -> Generator[Standing, None, tuple[HeldOut, ...]]:
        yield Standing("healed")
        return (HeldOut("other.txt", 0.1, left.pop(0)),)

    monkeypatch.setattr(HeldOutCheck, "compared", compared)


def test_healing_that_makes_a_text_worse_is_not_written(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = llama(layers=4).write(tmp_path / "toy.gguf"), tmp_path / "other.txt"
    other.write_text("ab" * 400)
    measuring(monkeypatch, 0.2, 0.15)
    with pytest.raises(SurgeonError, match=r"not written: on other\.txt healing is worse .*0\.100 -> 0\.150"):
        healed(path, {2}, text, held_out=(other,))
    assert not (tmp_path / "out.heal.gguf").exists()
    measuring(monkeypatch, 0.2)
    healed(path, {2}, text, held_out=(other,), keep_worse=True)
    opened = load_model(path)
    resolution = resolve(opened, planned(opened, tmp_path / "out.heal.gguf", {2}))
    assert any("worse than pruning alone" in problem.text for problem in resolution.problems)


def test_only_the_matrix_before_the_gap_where_all_of_them_do_harm(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = llama(layers=4).write(tmp_path / "toy.gguf"), tmp_path / "other.txt"
    other.write_text("ab" * 400)
    measuring(monkeypatch, 0.2, 0.05)
    healed(path, {2}, text, held_out=(other,))
    heal = load_heal(tmp_path / "out.heal.gguf")
    assert set(heal.tensors) == {"blk.1.ffn_down.weight"}
    assert [(one.plain, one.healed) for one in heal.origin.held_out] == [pytest.approx((0.1, 0.05))]


def test_a_child_killed_while_healing_is_one_line_and_leaves_nothing(tmp_path: Path, text: Path) -> None:
    path = llama(layers=4).write(tmp_path / "toy.gguf")
    cache = tmp_path / "cache"
    opened = load_model(path)
    request = HealRequest(opened, frozenset({1}), (text,), tmp_path / "out.heal.gguf", n_ctx=CHUNK)
    run = HealRun(request, ONE_THREAD, cache)

    def kill() -> None:
        assert run.run is not None
        assert run.run.process is not None
        run.run.process.kill()

    with pytest.raises(EngineError, match="SIGKILL") as caught:
        at_each(HealedMatrix, run.steps(), kill)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("trial-*"))
    assert not (tmp_path / "out.heal.gguf").exists()


def test_a_full_disk_is_told_before_a_stream_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EngineError, match=r"0\.4 GB for a stream cannot be written: No space left on device"):
        Store(str(tmp_path), 100_000).new(1000)
    assert not list(tmp_path.iterdir())


def test_parallel_branches_are_refused(tmp_path: Path, text: Path) -> None:
    # cohere2 adds attention and feed-forward to the stream together: there is none between them.
    model = cohere2().write(tmp_path / "toy.gguf")
    with pytest.raises(EngineError, match=r"does not show its .*; it cannot be healed"):
        healed(model, {1}, text)


@pytest.mark.parametrize("name", ["llama4", "glm4moe"])
def test_layers_that_do_not_run_alone_are_refused(name: str, tmp_path: Path, text: Path) -> None:
    model = toy_experts.ALL[name]().write(tmp_path / "toy.gguf")
    with pytest.raises(SurgeonError, match=f"does not run single layers of {name}; it cannot be healed"):
        healed(model, {1}, text)


def test_quantize_heals_on_a_text_once(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("surgeon.folders.cache_folder", lambda: tmp_path / "cache")
    path = llama(layers=4).write(tmp_path / "toy.gguf")
    command = ["quantize", "--prune-layers", "2", "--heal", str(text), "--heal-tokens", "24"]
    assert cli.run([*command, str(path), str(tmp_path / "a.gguf"), "COPY", "1"]) == 0
    (heal,) = (tmp_path / "cache" / "heals").iterdir()
    assert f"the heal file is kept in {heal}" in capsys.readouterr().err
    assert cli.run([*command, str(path), str(tmp_path / "b.gguf"), "COPY", "1"]) == 0
    assert "is kept" not in capsys.readouterr().err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(SurgeonError, match="a dry run heals nothing"):
        cli.run([*command, "--dry-run", str(path), "COPY"])
    with pytest.raises(SurgeonError, match="no layers to prune"):
        cli.run(["quantize", "--heal", str(text), str(path), str(tmp_path / "c.gguf"), "COPY", "1"])
