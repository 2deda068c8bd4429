"""Fixtures of the engine's tests."""

from __future__ import annotations

import importlib.util
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import TEXT, Base, figures
from moments_toy import HEAD, Toy, toy_moments

from surgeon.engine.protocol import PerplexityJob
from surgeon.gguf.identity import model_identity
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments
from surgeon.moments.moments import Moments
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.write.operation import WriteOptions, write

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """xllamacpp's wheel has C symbols everywhere but on Windows; elsewhere its absence is a broken environment."""
    if sys.platform != "win32" or importlib.util.find_spec("llama_cpp") is not None:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no llama.cpp with C symbols for Windows on PyPI"))


@pytest.fixture(scope="session")
def base(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    path = tmp_path_factory.mktemp("base") / "base.kld"
    job = PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, n_chunks=4, save_base=str(path))
    return Base(path, figures(job))


@pytest.fixture(scope="session")
def two_layers(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model without ten of its layers."""
    out = tmp_path_factory.mktemp("two") / "two.gguf"
    model = load_model(demo_model)
    with model.file:
        list(write(resolve(model, Plan(pruned=frozenset(range(2, 12)))), None, out, WriteOptions(), threading.Event()))
    return out


@pytest.fixture(scope="session")
def demo_moments(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Moments:
    """Second moments of made-up, correlated inputs for the bundled model; q, k and v share theirs, gate and up too."""
    model, rng = load_model(demo_model), np.random.default_rng(5)
    widths = {tensor.ne[0] for tensor in model.tensors if len(tensor.ne) > 1}
    inputs = {width: _correlated(rng, width) for width in widths}
    rows, users = {"output.weight": inputs[256]}, {}
    shared = {"attn_q": ("attn_k", "attn_v"), "attn_output": (), "ffn_gate": ("ffn_up",), "ffn_down": ()}
    with model.file:
        for tensor in model.tensors:
            if tensor.short in shared:
                rows[tensor.name] = inputs[tensor.ne[0]]
                layer = f"blk.{tensor.layer}"
                users |= {f"{layer}.{user}.weight": tensor.name for user in shared[tensor.short]}
    toy = Toy(rows)
    toy.users |= users
    head = replace(HEAD, model=model_identity(demo_model), model_name=model.name)
    return load_moments(toy_moments(tmp_path_factory.mktemp("moments") / "made-up.gguf", toy, head))


def _correlated(rng: np.random.Generator, columns: int) -> np.ndarray:
    hidden = rng.standard_normal((5 * columns, columns // 8)) @ rng.standard_normal((columns // 8, columns))
    return (hidden + 0.5 * rng.standard_normal(hidden.shape)).astype(np.float32)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's log and state directories stay as they are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))
    monkeypatch.delenv("LLAMA_CPP_LIB_DIR", raising=False)
    return tmp_path / "home"
