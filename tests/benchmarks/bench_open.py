"""How long opening takes, beside gguf.GGUFReader in the same run.

pytest tests/benchmarks/bench_open.py --benchmark-enable
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_builder import build_gguf, llama_kv

from surgeon.gguf.file import Value, ValueType, open_gguf
from surgeon.gguf.layout import Entry, header
from surgeon.model.model import load_model
from surgeon_kernels.formats import FORMATS

TOKENS = 256_000


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is all metadata: 256,000 tokens with scores and types, and as many merges (about 13 MB)."""
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnop", k=letters.randint(2, 10))) + str(i) for i in range(TOKENS)]
    kv = llama_kv(0) | {
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, words),
        "tokenizer.ggml.scores": Value.array(ValueType.FLOAT32, [-float(i) for i in range(TOKENS)]),
        "tokenizer.ggml.token_type": Value.array(ValueType.INT32, [1] * TOKENS),
        "tokenizer.ggml.merges": Value.array(ValueType.STRING, [f"{word[:2]} {word[2:]}" for word in words]),
    }
    return build_gguf(tmp_path_factory.mktemp("vocabulary") / "v.gguf", kv, {})


@pytest.fixture(scope="module")
def sparse_30_gb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 48 layers in F16, 30 GB on paper and none on disk."""
    f16, f32 = FORMATS["F16"].number, FORMATS["F32"].number
    embd, ff, kv_width, vocab = 5120, 17920, 1024, 152_064
    shapes = {"attn_q": (embd, embd), "attn_k": (embd, kv_width), "attn_v": (embd, kv_width)}
    shapes |= {"attn_output": (embd, embd), "ffn_gate": (embd, ff), "ffn_up": (embd, ff), "ffn_down": (ff, embd)}
    entries = [Entry("token_embd.weight", (embd, vocab), f16, 2 * embd * vocab)]
    for layer in range(48):
        entries += [Entry(f"blk.{layer}.{short}.weight", ne, f16, 2 * ne[0] * ne[1]) for short, ne in shapes.items()]
        entries += [Entry(f"blk.{layer}.{short}_norm.weight", (embd,), f32, 4 * embd) for short in ("attn", "ffn")]
    pairs = [("general.architecture", Value.of(ValueType.STRING, "llama"))]
    layout = header(pairs, [*entries, Entry("output.weight", (embd, vocab), f16, 2 * embd * vocab)], 32)
    path = tmp_path_factory.mktemp("sparse") / "s.gguf"
    with path.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)
    assert layout.total_bytes > 29e9
    return path


@pytest.mark.benchmark(group="open, 256,000 tokens")
def test_bench_open_vocabulary(benchmark: Callable[..., Any], vocabulary: Path) -> None:
    assert benchmark(open_gguf, vocabulary).kv["tokenizer.ggml.tokens"].count == TOKENS


@pytest.mark.benchmark(group="open, 256,000 tokens")
def test_bench_gguf_reader_vocabulary(benchmark: Any, vocabulary: Path) -> None:
    reader = benchmark.pedantic(gguf.GGUFReader, (vocabulary,), rounds=1)
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == TOKENS


@pytest.mark.benchmark(group="open, 30 GB")
def test_bench_load_30_gb(benchmark: Callable[..., Any], sparse_30_gb: Path) -> None:
    assert len(benchmark(load_model, sparse_30_gb).layers) == 48


@pytest.mark.benchmark(group="open, 30 GB")
def test_bench_gguf_reader_30_gb(benchmark: Callable[..., Any], sparse_30_gb: Path) -> None:
    assert len(benchmark(gguf.GGUFReader, sparse_30_gb).tensors) == 48 * 9 + 2
