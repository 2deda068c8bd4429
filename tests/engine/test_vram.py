"""What a context takes, against what llama.cpp says it allocates, for every kind of layer."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_architectures as toys
from engine_helpers import ONE_THREAD
from toy_architectures import Toy

from surgeon.errors import UsageError
from surgeon.fit.vram import Card, cache_bytes, cache_type, on_host
from surgeon.measure.memory import demand
from surgeon.model.model import load_model

CARD = Card(1 << 30, n_ctx=8192, parallel=8)
PROBE = Path(__file__).parent / "memory_probe.py"
KINDS: dict[str, Callable[[], Toy]] = {
    "plain": toys.llama,
    "per-layer heads": lambda: toys.llama("deci", attention__head_count_kv=[2, 1, 2, 1, 2, 1]),
    "windows": lambda: toys.gemma("gemma3", 12),
    "windows listed, shared keys": toys.gemma4,
    "windows, experts": toys.gpt_oss,
    "prediction layer": toys.glm4moe,
    "latent": lambda: toys.deepseek2(5, 2),
    "short convolutions": toys.lfm2,
    "recurrent": toys.mamba,
    "recurrent with attention": toys.jamba,
    "delta nets": toys.qwen35,
}


def allocated(log: str, what: str) -> float:
    """MiB of all buffers of this kind."""
    return sum(map(float, re.findall(rf" {what} buffer size =\s*([0-9.]+) MiB", log)))


def test_the_cache_is_what_llama_cpp_allocates(tmp_path: Path) -> None:
    paths = {kind: make().write(tmp_path / f"{number}.gguf") for number, (kind, make) in enumerate(KINDS.items())}
    command = [sys.executable, str(PROBE), str(CARD.n_ctx), str(CARD.parallel), *map(str, paths.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    logs = dict(zip(paths, done.stderr.split("=== ")[1:], strict=True))
    for kind, path in paths.items():
        model = load_model(path)
        with model.file:
            expected = allocated(logs[kind], "KV") + allocated(logs[kind], "RS")
            assert expected > 0.05, kind
            assert cache_bytes(model, CARD) / (1 << 20) == pytest.approx(expected, abs=0.021), kind


def test_compute_buffers_are_those_of_the_log(demo_model: Path) -> None:
    card = Card(1 << 30, n_ctx=1024)
    command = [sys.executable, str(PROBE), "1024", "1", str(demo_model)]
    log = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
    model = load_model(demo_model)
    with model.file:
        found = demand(model, card, ONE_THREAD)
    assert found.compute / (1 << 20) == pytest.approx(allocated(log, "compute"), abs=0.01)
    assert found.total == found.cache + found.compute + card.reserve


def test_embeddings_stay_in_memory_unless_they_are_the_head_too(demo_model: Path, tmp_path: Path) -> None:
    with load_model(demo_model).file as file:
        assert "output.weight" in {info.name for info in file.tensors}
    assert on_host(load_model(demo_model)) == {"token_embd.weight"}
    tied = toys.gemma("gemma3", 12).write(tmp_path / "tied.gguf")
    assert on_host(load_model(tied)) == frozenset()


def test_a_cache_type_that_is_none_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    assert cache_type("q8_0") == "Q8_0"
    with pytest.raises(UsageError, match="choose among"):
        cache_type("q6_k")
    model = load_model(toys.llama(attention__key_length=8, attention__head_count_kv=1).write(tmp_path / "m.gguf"))
    with model.file, pytest.raises(UsageError, match="do not fill its blocks"):
        cache_bytes(model, Card(1 << 30, cache_type="Q8_0"))
