"""Calls, weights and saliency of experts against the same sums worked out in numpy from what the router reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_experts as toys
from toy_architectures import Toy

from surgeon.imatrix.experts import ExpertSums, added
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, load_influence, merged, save
from surgeon.model.model import load_model
from surgeon.resolve.expert_choice import choose_experts

Array = np.ndarray


def silu(values: Array) -> Array:
    return values / (1 + np.exp(-values))


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def gated(toy: Toy, layer: int, expert: int, x: Array) -> Array:
    gate, up, down = (toy.tensors[f"blk.{layer}.ffn_{name}_exps.weight"][expert] for name in ("gate", "up", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def mixtral_layer(toy: Toy, layer: int, x: Array) -> tuple[Array, Array, Array]:
    logits = x @ toy.tensors[f"blk.{layer}.ffn_gate_inp.weight"].T
    chosen = np.argsort(-logits)[:2]
    weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
    return chosen, weights, np.array([w * gated(toy, layer, e, x) for e, w in zip(chosen, weights, strict=True)])


def llama4_layer(toy: Toy, layer: int, x: Array) -> tuple[Array, Array, Array]:
    """The weight multiplies the input."""
    logits = x @ toy.tensors[f"blk.{layer}.ffn_gate_inp.weight"].T
    chosen = np.argsort(-logits)[:1]
    weights = sigmoid(logits[chosen])
    return chosen, weights, gated(toy, layer, int(chosen[0]), weights[0] * x)[None]


def gpt_oss_layer(toy: Toy, layer: int, x: Array) -> tuple[Array, Array, Array]:
    def product(name: str, expert: int, values: Array) -> Array:
        blk = f"blk.{layer}.ffn_{name}_exps."
        return values @ toy.tensors[blk + "weight"][expert].T + toy.tensors[blk + "bias"][expert]

    logits = x @ toy.tensors[f"blk.{layer}.ffn_gate_inp.weight"].T + toy.tensors[f"blk.{layer}.ffn_gate_inp.bias"]
    chosen = np.argsort(-logits)[:3]
    weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
    outputs = []
    for expert, weight in zip(chosen, weights, strict=True):
        gate, up = np.minimum(product("gate", expert, x), 7), np.clip(product("up", expert, x), -7, 7)
        outputs.append(weight * product("down", expert, gate * sigmoid(1.702 * gate) * (up + 1)))
    return chosen, weights, np.array(outputs)


@pytest.mark.parametrize(
    ("make", "one_token", "layers"),
    [
        (toys.mixtral, mixtral_layer, [0, 1, 2]),
        (toys.llama4, llama4_layer, [1, 3]),
        (toys.gpt_oss, gpt_oss_layer, [0, 1, 2]),
    ],
)
def test_sums_are_those_of_numpy(
    tmp_path: Path, make: Callable[[], Toy], one_token: Callable[..., tuple[Array, Array, Array]], layers: list[int]
) -> None:
    toy = make()
    found = probed(tmp_path, toy.write(tmp_path / "moe.gguf"))
    calls, gate, saliency = found["experts"]
    assert np.flatnonzero(calls.sum(axis=1)).tolist() == layers
    for layer in layers:
        expected = np.zeros((3, toys.COUNT))
        for x in found[f"router|{layer}"].astype(np.float64):
            chosen, weights, outputs = one_token(toy, layer, x)
            expected[0, chosen] += 1
            expected[1, chosen] += weights
            expected[2, chosen] += np.linalg.norm(outputs, axis=1)
        assert calls[layer].tolist() == expected[0].tolist()
        assert gate[layer] == pytest.approx(expected[1], rel=1e-4)
        assert saliency[layer] == pytest.approx(expected[2], rel=2e-3)  # the KV cache is in half precision


def probed(tmp_path: Path, model: Path) -> dict[str, Array]:
    probe = Path(__file__).with_name("router_probe.py")
    done = subprocess.run(
        [sys.executable, str(probe), str(tmp_path / "sums.npz"), str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "sums.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("make", [toys.gemma4, toys.deepseek2, toys.jamba, toys.smallthinker])
def test_every_token_is_counted(tmp_path: Path, make: Callable[[], Toy]) -> None:
    toy = make()
    found = probed(tmp_path, toy.write(tmp_path / "moe.gguf"))
    calls, gate, saliency = found["experts"]
    used = toy.keys["expert_used_count"]
    layers = [layer for layer in range(toy.layers) if f"blk.{layer}.ffn_gate_inp.weight" in toy.tensors]
    assert calls[layers].sum(axis=1).tolist() == [used * 48] * len(layers)
    assert ((gate > 0) == (calls > 0)).all()
    assert ((saliency > 0) == (calls > 0)).all()
    for layer in layers:
        assert calls[layer].tolist() == found[f"count|blk.{layer}.ffn_down_exps.weight"].tolist()


def sums(rng: np.random.Generator) -> ExpertSums:
    calls = rng.integers(0, 9, (3, 16)).astype(float)
    calls[0] = 0
    return ExpertSums(calls, calls / 2, calls * rng.random((3, 16)))


def test_sums_are_kept_beside_the_imatrix_and_added(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    entry = ImatrixEntry(np.ones((1, 4), np.float32), np.array([5]))
    parts = []
    for number in range(2):
        imatrix = Imatrix(tmp_path / f"{number}.gguf", {"blk.1.attn_q.weight": entry}, ("text",), 1, 5)
        influence = Influence(np.ones((3, 5)), experts=sums(rng))
        save(imatrix, influence, imatrix.path)
        parts.append((load_imatrix(imatrix.path), load_influence(imatrix.path)))
    first, second = (influence.experts for _, influence in parts if influence is not None)
    assert first is not None
    assert second is not None
    _, both = merged(parts)
    assert both is not None
    assert both.experts is not None
    assert both.experts.saliency == pytest.approx(first.saliency + second.saliency)
    assert first.layers == [1, 2]
    assert np.isnan(first.share_of_calls()[0]).all()
    assert first.share_of_calls()[1].sum() == pytest.approx(1)
    assert added([first, None]) is None


def test_the_least_salient_go_first(tmp_path: Path) -> None:
    """Of each group its share; experts never called before all others; layers that do not run lose the last ones."""
    toy = toys.glm4moe()
    toy.keys |= {"expert_group_count": 2, "expert_group_used_count": 1}
    model = load_model(toy.write(tmp_path / "model.gguf"))
    calls, saliency = np.zeros((3, 16)), np.zeros((3, 16))
    calls[1:] = 4
    saliency[1] = np.arange(16)[::-1] * 4
    saliency[2] = np.arange(16) * 4
    calls[2, 9] = saliency[2, 9] = 0
    imatrix = Imatrix(tmp_path / "im.gguf", {}, (), 0, 512)
    choice = choose_experts(model, "25%", "saliency", imatrix, ExpertSums(calls, calls, saliency))
    assert {layer: sorted(gone) for layer, gone in choice.sets.items()} == {
        1: [6, 7, 14, 15],
        2: [0, 1, 8, 9],
        3: [6, 7, 14, 15],
    }
    assert [note.text for note in choice.notes] == [
        "the experts of layer 3 are not run for text and not measured: the last ones go",
        "experts that no token was routed to go first: 1, in layer 2",
    ]
