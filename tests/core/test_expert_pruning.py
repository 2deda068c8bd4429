"""Pruning experts: a pruned toy must give the logits of the whole one in which those experts are silenced.

Bit for bit, if tokens are decoded one by one (llama.cpp multiplies several rows at once in another order) and, where a
softmax sums over all experts, whole blocks of eight go (it sums eight at a time).
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experts as toys
from gguf_builder import build_gguf
from toy_architectures import Toy
from toy_experts_further import ALL

from surgeon import cli
from surgeon.anatomy import expert_model
from surgeon.anatomy.experts import EXPERTS, SOFTMAX, experts_of
from surgeon.anatomy.table import ARCHITECTURES
from surgeon.errors import SurgeonError
from surgeon.imatrix.experts import ExpertSums
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, load_influence, save
from surgeon.model.model import Model, load_model
from surgeon.plan.plan import Plan, with_experts_toggled, with_pruned_experts
from surgeon.plan.recipe import Recipe, read_recipe, to_toml
from surgeon.resolve.metadata import plan_hash
from surgeon.resolve.resolve import Resolution, resolve
from surgeon.write.operation import WriteOptions, write

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the extra `engine` is not installed"
)
PROBE = Path(__file__).with_name("expert_probe.py")
Sets = dict[int, list[int]]


def prune(source: Path, target: Path, sets: Sets, layers: frozenset[int] = frozenset(), **plan: Any) -> Model:
    resolution = resolve(load_model(source), with_pruned_experts(Plan(pruned=layers, **plan), sets))
    assert [problem.text for problem in resolution.problems if problem.severity == "error"] == []
    written(resolution, target)
    return load_model(target)


def written(resolution: Resolution, target: Path) -> None:
    for _ in write(resolution, None, target, WriteOptions(threads=1, overwrite=True), threading.Event()):
        pass


def logits(tmp_path: Path, *runs: tuple[Path, Sets]) -> list[np.ndarray]:
    """float32[16, 32] of each run, a model with the experts of some layers silenced."""
    out = tmp_path / "logits.npz"
    words = [word for path, sets in runs for word in (str(path), json.dumps(sets))]
    command = [sys.executable, str(PROBE), str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        log = [line for line in done.stderr.splitlines() if "rror" in line or "ASSERT" in line]
        pytest.fail(f"{[path.name for path, _ in runs]}: {done.returncode}: {log[-3:]}")
    with np.load(out) as stored:
        return [stored[name] for name in stored.files]


def some_experts(model: Model) -> Sets:
    """A quarter of every layer's experts, others in each; half of them in blocks where a softmax sums over all."""
    experts, rng = expert_model(model), np.random.default_rng(3)
    assert experts.anatomy is not None
    size = experts.count // experts.groups
    sets: Sets = {}
    for layer in experts.layers:
        if experts.groups == 4:
            group = int(rng.integers(4))
            sets[layer] = list(range(4 * group, 4 * group + 4))
        elif experts.anatomy.gating == SOFTMAX and experts.groups == 1:
            sets[layer] = list(range(8)) if layer % 2 else list(range(8, 16))
        else:
            share = experts.count // 4 // experts.groups
            chosen = [rng.choice(size, share, replace=False) + group * size for group in range(experts.groups)]
            sets[layer] = sorted(int(expert) for part in chosen for expert in part)
    return sets


def run_layers(model: Model, sets: Sets) -> Sets:
    """Without the layers of multi-token prediction, which do not read text."""
    return {layer: gone for layer, gone in sets.items() if layer < expert_model(model).trunk}


Compared = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """architecture -> logits of the whole toy, of the whole one with experts silenced, of the pruned one."""
    folder = tmp_path_factory.mktemp("experts")
    runs: list[tuple[Path, Sets]] = []
    for name, make in ALL.items():
        whole, pruned = make().write(folder / f"{name}.gguf"), folder / f"{name}-pruned.gguf"
        sets = some_experts(load_model(whole))
        prune(whole, pruned, sets)
        runs += [(whole, {}), (whole, run_layers(load_model(whole), sets)), (pruned, {})]
    found = logits(folder, *runs)
    return {name: (found[3 * i], found[3 * i + 1], found[3 * i + 2]) for i, name in enumerate(ALL)}


@needs_engine
@pytest.mark.parametrize("architecture", ALL)
def test_a_pruned_model_is_the_whole_one_with_those_experts_silenced(compared: Compared, architecture: str) -> None:
    whole, silenced, pruned = compared[architecture]
    assert np.isfinite(silenced).all()
    assert np.abs(whole - silenced).max() > 0.1  # they mattered
    assert np.array_equal(silenced, pruned)


@needs_engine
@pytest.mark.parametrize("make", [toys.mixtral, toys.gemma4, toys.qwen2moe, toys.jamba])
def test_any_experts_of_a_softmax_but_for_rounding(tmp_path: Path, make: Any) -> None:
    whole = make().write(tmp_path / "whole.gguf")
    sets = {layer: [1, 4, 7, 13] for layer in expert_model(load_model(whole)).layers}
    prune(whole, tmp_path / "pruned.gguf", sets)
    silenced, pruned = logits(tmp_path, (whole, sets), (tmp_path / "pruned.gguf", {}))
    assert np.abs(silenced - pruned).max() < 2e-3


@needs_engine
@pytest.mark.parametrize("make", [toys.deepseek2, toys.glm4moe, toys.lfm2moe, toys.mimo2])
def test_experts_that_are_never_chosen_can_go(tmp_path: Path, make: Any) -> None:
    """Without any callback: a bias keeps the router from ever choosing them."""
    toy = make()
    sets = some_experts(load_model(toy.write(tmp_path / "first.gguf")))
    for layer, gone in sets.items():
        toy.tensors[f"blk.{layer}.exp_probs_b.bias"][gone] = -1e9
    whole = toy.write(tmp_path / "whole.gguf")
    prune(whole, tmp_path / "pruned.gguf", sets)
    left, right = logits(tmp_path, (whole, {}), (tmp_path / "pruned.gguf", {}))
    assert np.array_equal(left, right)


@needs_engine
def test_fewer_experts_than_are_used(tmp_path: Path) -> None:
    """Two of sixteen stay, three were used; the width of an expert was `feed_forward_length / expert_used_count`."""
    whole = toys.qwen2moe().write(tmp_path / "whole.gguf")
    sets = {layer: [expert for expert in range(16) if expert not in (layer, 9)] for layer in range(3)}
    model = prune(whole, tmp_path / "pruned.gguf", sets)
    assert (model.hparam("expert_count"), model.hparam("expert_used_count")) == (2, 2)
    assert model.hparam("expert_feed_forward_length") == toys.WIDTH
    silenced, pruned = logits(tmp_path, (whole, sets), (tmp_path / "pruned.gguf", {}))
    assert np.abs(silenced - pruned).max() < 2e-3


@needs_engine
def test_layers_and_experts_together(tmp_path: Path) -> None:
    toy = toys.qwen3moe()
    toy.silence({1})
    whole = toy.write(tmp_path / "whole.gguf")
    sets = {0: list(range(8)), 2: list(range(8, 16)), 3: list(range(8))}
    model = prune(whole, tmp_path / "pruned.gguf", sets, frozenset({1}))
    assert model.hparam("block_count") == 3
    assert model.hparam("expert_used_count") == [3, 3, 2]
    assert model.file.kv["surgeon.pruned_experts"].decode() == ["0: 0-7", "2: 8-15", "3: 0-7"]
    silenced, pruned = logits(tmp_path, (whole, sets), (tmp_path / "pruned.gguf", {}))
    assert np.array_equal(silenced, pruned)


@needs_engine
def test_pruned_twice_is_pruned_at_once(tmp_path: Path) -> None:
    whole = toys.glm4moe().write(tmp_path / "whole.gguf")
    once = prune(whole, tmp_path / "once.gguf", {2: [0, 5, 6], 3: [1, 2, 15]}, frozenset({1}))
    first = prune(whole, tmp_path / "first.gguf", {1: [3], 2: [5], 3: [1]})
    # Layer 2 is the first one left with experts; what was expert 6 is now 5.
    twice = prune(first.file.path, tmp_path / "twice.gguf", {2: [0, 5], 3: [1, 14]}, frozenset({1}))
    assert twice.file.kv["surgeon.pruned_experts"].decode() == ["1: 3", "2: 0, 5-6", "3: 1-2, 15"]
    assert once.file.kv["surgeon.pruned_experts"].decode() == ["2: 0, 5-6", "3: 1-2, 15"]
    assert twice.file.kv["surgeon.source"].decode() == "whole.gguf"
    left, right = logits(tmp_path, (tmp_path / "once.gguf", {}), (tmp_path / "twice.gguf", {}))
    assert np.array_equal(left, right)


# ------------------------------------------------------------------ the table


def test_every_architecture_stands_in_one_row() -> None:
    names = [name for row in EXPERTS for name in row.names.split()]
    assert len(names) == len(set(names))
    assert set(names) <= ARCHITECTURES
    assert {*ALL, "grovemoe", "deepseek4", "nomic-bert-moe"} <= set(names)


def test_the_architectures_of_the_gguf_package_with_experts_are_known() -> None:
    """By the tensors it lists for them. It lists them for deci too, whose loader in llama.cpp knows none."""
    import gguf

    for number, tensors in gguf.MODEL_TENSORS.items():
        name = gguf.MODEL_ARCH_NAMES[number]
        if gguf.MODEL_TENSOR.FFN_DOWN_EXP in tensors and name in ARCHITECTURES - {"deci"}:
            assert experts_of(name) is not None, name


# ------------------------------------------------------------- refusals, counts


def problems(toy: Toy, tmp_path: Path, sets: Sets, severity: str = "error", **plan: Any) -> list[str]:
    model = load_model(toy.write(tmp_path / "toy.gguf"))
    found = resolve(model, with_pruned_experts(Plan(**plan), sets)).problems
    return [problem.text for problem in found if problem.severity == severity]


def renamed(toy: Toy, architecture: str) -> Toy:
    toy.architecture = architecture
    return toy


def with_hash_table() -> Toy:
    toy = renamed(toys.mixtral(), "deepseek4")
    toy.tensors["blk.0.ffn_gate_tid2eid.weight"] = np.zeros((32, 2), np.int32)
    return toy


def maverick() -> Toy:
    toy = toys.llama4()
    toy.keys["expert_count"] = 128
    for name, values in toy.tensors.items():
        if "_exps" in name or "gate_inp." in name:
            toy.tensors[name] = np.repeat(values, 8, axis=0)
    return toy


@pytest.mark.parametrize(
    ("make", "sets", "expected"),
    [
        (toys.mixtral, {0: [1], 1: [2]}, "0 in layer 2; 1 in layers 0-1"),
        (toys.mixtral, {0: [16], 1: [0], 2: [0]}, "layer 0 has no expert 16; its experts are 0 to 15"),
        (toys.dots1, {0: [1]}, "layer 0 has no experts; layers with experts: 1-2"),
        (toys.mixtral, {layer: list(range(16)) for layer in range(3)}, "cannot prune every expert of layer 0"),
        (
            toys.deepseek2,
            {layer: [0, 1] for layer in (1, 2, 3)},
            "2 groups of neighbours, which must lose equally",
        ),
        (toys.bailingmoe2, {1: [0, 1, 2, 3], 2: [0, 4, 8, 12]}, "must lose equally many experts"),
        (toys.bailingmoe2, {layer: [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14] for layer in (1, 2)}, "must keep two"),
        (lambda: toys.deepseek2(4, 1), {n: [0, 1, 4, 5, 8, 9, 12, 13] for n in (1, 2, 3)}, "hold 2 experts, and 3 are"),
        (lambda: renamed(toys.mixtral(), "mistral9"), {0: [1]}, "those of 'mistral9' are not known"),
        (lambda: renamed(toys.mixtral(), "grovemoe"), {n: [0] for n in range(3)}, "--i-know prunes all the same"),
        (lambda: renamed(toys.mixtral(), "dflash"), {n: [0] for n in range(3)}, "a draft of another model"),
        (with_hash_table, {n: [0] for n in range(3)}, "sends every token to experts by number"),
        (maverick, {1: [0], 3: [5]}, "cannot prune 128 experts to 127: llama.cpp takes from the number of experts"),
    ],
)
def test_what_is_refused(tmp_path: Path, make: Any, sets: Sets, expected: str) -> None:
    (text,) = problems(make(), tmp_path, sets)
    assert expected in text


def test_unknown_tensors_and_wrong_counts_are_refused(tmp_path: Path) -> None:
    every = {layer: [0] for layer in range(3)}
    toy = toys.mixtral()
    toy.mat("blk.1.ffn_gate_exps.lora", 8, 16)
    assert "it is not known where the experts lie in blk.1.ffn_gate_exps.lora" in problems(toy, tmp_path, every)[0]
    toy = toys.mixtral()
    toy.mat("blk.2.ffn_down.3.weight", 8, 16)
    assert "one tensor for each expert is a form llama.cpp no longer loads" in problems(toy, tmp_path, every)[0]
    toy = toys.mixtral()
    toy.vec("blk.1.exp_probs_b.bias", 15)
    assert "has 15 experts, expert_count says 16" in problems(toy, tmp_path, every)[0]
    assert problems(toys.mixtral(), tmp_path, every, compat=True) == [
        "llama-quantize cannot prune experts; leave out --compat"
    ]


def test_whole_groups_lower_the_group_counts(tmp_path: Path) -> None:
    """One of four goes; with two left, and two used, groups choose nothing any more."""
    whole = toys.bailingmoe2().write(tmp_path / "whole.gguf")
    three = prune(whole, tmp_path / "three.gguf", {layer: [4, 5, 6, 7] for layer in (1, 2)})
    assert (three.hparam("expert_group_count"), three.hparam("expert_group_used_count")) == (3, 2)
    two = prune(whole, tmp_path / "two.gguf", {layer: list(range(4, 12)) for layer in (1, 2)})
    assert (two.hparam("expert_group_count"), two.hparam("expert_group_used_count")) == (1, 1)
    even = prune(whole, tmp_path / "even.gguf", {layer: [0, 4, 8, 12] for layer in (1, 2)})
    assert (even.hparam("expert_group_count"), even.hparam("expert_count")) == (4, 12)


def test_an_override_that_contradicts_is_refused(tmp_path: Path) -> None:
    from surgeon.plan.plan import KVOverride

    override = KVOverride("llama.expert_count", "int", 16)
    text = problems(toys.mixtral(), tmp_path, {n: [0] for n in range(3)}, override_kv=(override,))
    assert text == ["--override-kv llama.expert_count contradicts the experts pruned; leave it out"]


# ------------------------------------------------------- blocks, sizes, imatrix


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """Eight experts of 256 × 4 in two layers, random blocks of Q4_K."""
    rng = np.random.default_rng(5)
    kv = {"general.architecture": "llama", "llama.block_count": 2, "llama.expert_count": 8}
    tensors: dict[str, Any] = {}
    for layer in range(2):
        blk = f"blk.{layer}."
        tensors[blk + "ffn_gate_inp.weight"] = rng.standard_normal((8, 256)).astype(np.float32)
        for name in ("gate", "up", "down"):
            blocks = rng.integers(0, 48, (8 * 4, 144), np.uint8)  # scales far from infinity
            tensors[f"{blk}ffn_{name}_exps.weight"] = ("Q4_K", (256, 4, 8), blocks.tobytes())
    return build_gguf(tmp_path / "quantized.gguf", kv | {"llama.expert_used_count": 2}, tensors)


def test_quantized_experts_keep_their_blocks(quantized: Path, tmp_path: Path) -> None:
    before = load_model(quantized)
    after = prune(quantized, tmp_path / "pruned.gguf", {0: [1, 6], 1: [0, 7]})
    for layer, kept in ((0, [0, 2, 3, 4, 5, 7]), (1, [1, 2, 3, 4, 5, 6])):
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp"):
            old, new = (
                next(t for t in model.tensors if t.name == f"blk.{layer}.{name}.weight") for model in (before, after)
            )
            whole = np.asarray(before.file.data(old.info)).reshape(8, -1)
            assert np.array_equal(np.asarray(after.file.data(new.info)).reshape(6, -1), whole[kept])
            assert new.type_name == old.type_name


def test_sizes_and_bits_count_what_stays(quantized: Path, tmp_path: Path) -> None:
    model = load_model(quantized)
    resolution = resolve(model, with_pruned_experts(Plan(), {0: [1, 6], 1: [0, 7]}))
    assert resolution.n_parameters == model.n_parameters * 6 // 8
    assert resolution.bpw == pytest.approx(model.bpw)
    written(resolution, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_size == resolution.total_bytes
    assert {op.reason.rpartition("; ")[2] for op in resolution.kept} == {"6 of 8 experts"}


def an_imatrix(path: Path, names: list[str], columns: int = 256) -> Imatrix:
    sums = np.arange(8 * columns, dtype=np.float32).reshape(8, columns) + 1
    entries = {name: ImatrixEntry(sums + i, np.array([9, 1, 8, 2, 7, 3, 6, 4])) for i, name in enumerate(names)}
    imatrix = Imatrix(path, entries, ("text",), 4, 512)
    save(imatrix, None, path)
    return imatrix


@pytest.mark.parametrize("ending", ["gguf", "dat"])
def test_the_imatrix_follows_the_experts(quantized: Path, tmp_path: Path, ending: str) -> None:
    model = load_model(quantized)
    names = [tensor.name for tensor in model.tensors if "_exps" in tensor.name]
    imatrix = an_imatrix(tmp_path / "whole.gguf", names)
    saved, out = tmp_path / f"pruned.{ending}", tmp_path / "out.gguf"
    words = ["--imatrix", str(imatrix.path), "--prune-experts", "25%", "--experts-by", "calls"]
    words += ["--save-imatrix", str(saved), "--prune-layers", "0"]
    assert cli.run(["quantize", *words, str(quantized), str(out), "COPY"]) == 0
    followed, kept = load_imatrix(saved), [0, 2, 4, 5, 6, 7]  # 1 and 3 were called least
    for name in (name for name in names if name.startswith("blk.1.")):
        rows = imatrix.weights(name).reshape(8, -1)[kept]
        assert followed.weights(name.replace("blk.1.", "blk.0.")) == pytest.approx(rows.ravel(), rel=1e-6)


def test_what_is_known_of_the_experts_follows_them(tmp_path: Path) -> None:
    """So that the pruned model can be pruned again by its saliency."""
    whole = toys.granitemoe().write(tmp_path / "whole.gguf")
    entries = {"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 64), np.float32), np.array([64]))}
    imatrix = Imatrix(tmp_path / "im.gguf", entries, ("text",), 1, 64)
    calls = np.full((3, 16), 2.0)
    sums = ExpertSums(calls, calls / 8, calls * np.arange(48).reshape(3, 16)[:, ::-1])
    influence = Influence(np.arange(15.0).reshape(3, 5), weight_zd=np.ones(3), experts=sums)
    save(imatrix, influence, imatrix.path)
    saved, out = tmp_path / "pruned-im.gguf", tmp_path / "out.gguf"
    words = ["--imatrix", str(imatrix.path), "--prune-experts", "4", "--prune-layers", "1"]
    assert cli.run(["quantize", *words, "--save-imatrix", str(saved), str(whole), str(out), "COPY"]) == 0
    followed = load_influence(saved)
    assert followed is not None
    assert followed.experts is not None
    assert followed.layers.tolist() == influence.layers[[0, 2]].tolist()
    assert followed.weight_zd is None
    for name in ("calls", "gate", "saliency"):
        assert np.array_equal(getattr(followed.experts, name), getattr(sums, name)[[0, 2], :12])
    words = ["--imatrix", str(saved), "--prune-experts", "2", str(out), str(tmp_path / "again.gguf"), "COPY"]
    assert cli.run(["quantize", *words]) == 0
    told = load_model(tmp_path / "again.gguf").file.kv["surgeon.pruned_experts"].decode()
    assert told == ["0: 10-15", "2: 10-15"]


def test_an_imatrix_of_the_whole_model_weighs_the_experts_that_stay(tmp_path: Path) -> None:
    """Pruned and quantized in one go, or one after the other with the imatrix that follows: the same bytes."""
    rng = np.random.default_rng(1)
    kv = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.expert_count": 8,
        "llama.expert_used_count": 2,
    }
    tensors = {
        "blk.0.ffn_gate_inp.weight": rng.standard_normal((8, 256)).astype(np.float32),
        "blk.0.ffn_up_exps.weight": rng.standard_normal((8, 4, 256)).astype(np.float32),
        "blk.0.ffn_down_exps.weight": rng.standard_normal((8, 4, 256)).astype(np.float32),
    }
    model = build_gguf(tmp_path / "model.gguf", kv | {"llama.expert_used_count": 2}, tensors)
    imatrix = an_imatrix(tmp_path / "im.gguf", ["blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"])
    prune_words = ["--imatrix", str(imatrix.path), "--prune-experts", "2", "--experts-by", "calls"]
    quantize = ["quantize", *prune_words, "--hide-imatrix"]
    assert cli.run([*quantize, str(model), str(tmp_path / "at_once.gguf"), "Q4_0"]) == 0
    saved = tmp_path / "followed.gguf"
    words = ["quantize", *prune_words, "--save-imatrix", str(saved), str(model), str(tmp_path / "pruned.gguf"), "COPY"]
    assert cli.run(words) == 0
    words = ["quantize", "--imatrix", str(saved), str(tmp_path / "pruned.gguf"), str(tmp_path / "after.gguf"), "Q4_0"]
    assert cli.run(words) == 0
    once, after = load_model(tmp_path / "at_once.gguf"), load_model(tmp_path / "after.gguf")
    for left, right in zip(once.tensors, after.tensors, strict=True):
        assert (left.name, left.type_name) == (right.name, right.type_name)
        assert np.array_equal(once.file.data(left.info), after.file.data(right.info))


# ------------------------------------------------------------- plan and recipe


def test_plan_recipe_and_hash() -> None:
    plan = with_pruned_experts(Plan(file_type="Q4_K_M"), {3: [7, 2], 1: [0, 4], 9: []})
    assert plan.pruned_experts == ((1, (0, 4)), (3, (2, 7)))
    assert read_recipe(to_toml(Recipe(plan)), Path()).plan == plan
    assert plan_hash(plan) != plan_hash(Plan(file_type="Q4_K_M"))
    toggled = with_experts_toggled(plan, {1: [0, 5]})
    assert toggled.pruned_experts == ((1, (0, 4, 5)), (3, (2, 7)))
    assert with_experts_toggled(toggled, {1: [0, 4, 5]}).pruned_experts == ((3, (2, 7)),)


@pytest.mark.parametrize(
    ("amount", "measure", "expected"),
    [
        ("3", "calls", "the experts are in 2 groups; prune 2 or 4"),
        ("16", "calls", "that is 16 of 16 experts"),
        ("1%", "calls", "that is 0 of 16 experts"),
        ("many", "calls", "write a number of experts, or a share such as 25%"),
        ("25%", "weight", "must be saliency or calls"),
        ("25%", "saliency", "has no saliency of experts; collect it with surgeon imatrix, or use --experts-by calls"),
    ],
)
def test_amounts_that_do_not_fit(tmp_path: Path, amount: str, measure: str, expected: str) -> None:
    model = toys.deepseek2().write(tmp_path / "model.gguf")
    counts = np.arange(16) + 1
    entries = {f"blk.{n}.ffn_down_exps.weight": ImatrixEntry(np.ones((16, 32), np.float32), counts) for n in (1, 2, 3)}
    save(Imatrix(tmp_path / "im.gguf", entries, ("text",), 4, 512), None, tmp_path / "im.gguf")
    words = ["--imatrix", str(tmp_path / "im.gguf"), "--prune-experts", amount, "--experts-by", measure, "--dry-run"]
    with pytest.raises(SurgeonError, match=re.escape(expected)):
        cli.run(["quantize", *words, str(model), "COPY"])


def test_experts_without_data_count_no_more_once_pruned(tmp_path: Path) -> None:
    kv = {"general.architecture": "llama", "llama.block_count": 1, "llama.expert_count": 8}
    tensors = {
        "blk.0.ffn_gate_inp.weight": np.ones((8, 256), np.float32),
        "blk.0.ffn_down_exps.weight": np.ones((8, 4, 256), np.float32),
    }
    model = load_model(build_gguf(tmp_path / "model.gguf", kv | {"llama.expert_used_count": 2}, tensors))
    entry = ImatrixEntry(np.ones((8, 256), np.float32), np.array([9, 0, 8, 0, 7, 3, 6, 4]))
    imatrix = Imatrix(tmp_path / "im.gguf", {"blk.0.ffn_down_exps.weight": entry}, ("text",), 1, 512)

    def reason(plan: Plan) -> str:
        return next(op.reason for op in resolve(model, plan, imatrix).kept if "down" in op.name)

    assert "6 of 8 experts have data" in reason(Plan("Q4_0"))
    assert "6 of 7 experts have data" in reason(with_pruned_experts(Plan("Q4_0"), {0: [1]}))
    assert "have data" not in reason(with_pruned_experts(Plan("Q4_0"), {0: [1, 3]}))
