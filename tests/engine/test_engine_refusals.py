"""What cannot be measured is refused by name; a child that fails, hangs or babbles is one line within a set time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from engine_helpers import ONE_THREAD, TEXT
from gguf_builder import build_gguf

from surgeon.cli import run as command_line
from surgeon.engine import client
from surgeon.engine.client import EngineRun, perplexity
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import BenchJob, ImatrixJob, Job, PerplexityJob
from surgeon.errors import SurgeonError
from surgeon.gguf.file import open_gguf
from surgeon.model.kinds import kind

LLAMA = {"general.architecture": "llama", "llama.block_count": 1}
TENSORS = {"blk.0.attn_q.weight": ("F32", (32, 4))}
OTHERS = {
    "imatrix": ({"general.type": "imatrix"}, TENSORS),
    "adapter": ({**LLAMA, "general.type": "adapter"}, TENSORS),
    "mmproj": ({"general.architecture": "clip"}, TENSORS),
    "controlvector": ({"general.architecture": "controlvector"}, {"direction.1": ("F32", (32,))}),
    "vocabulary": ({**LLAMA, "tokenizer.ggml.tokens": ["a", "b"]}, {}),
    "encoder": ({"general.architecture": "bert"}, TENSORS),
    "both ways": ({"general.architecture": "dream", "dream.attention.causal": False}, TENSORS),
    "encoder-decoder": ({"general.architecture": "t5"}, TENSORS),
    "draft": ({"general.architecture": "eagle3"}, TENSORS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_perplexity_is_named_before_it_is_loaded(tmp_path: Path, name: str) -> None:
    kv, tensors = OTHERS[name]
    path = build_gguf(tmp_path / "other.gguf", kv, tensors)
    with open_gguf(path) as file:
        assert kind(file) == name
    word = name if name not in ("both ways", "controlvector", "imatrix") else ""
    for command in (["perplexity", "-f", str(TEXT)], ["bench"], ["imatrix", "-f", str(TEXT)]):
        with pytest.raises(SurgeonError, match=f"(?i){word}.*; .+"):
            command_line([command[0], "-m", str(path), *command[1:]])


def test_a_model_and_an_adapter_without_a_word_about_it(tmp_path: Path) -> None:
    with open_gguf(build_gguf(tmp_path / "m.gguf", LLAMA, TENSORS)) as file:
        assert kind(file) == "model"
    lora = {"blk.0.attn_q.weight.lora_a": ("F32", (32, 4))}
    with open_gguf(build_gguf(tmp_path / "l.gguf", LLAMA, lora)) as file:
        assert kind(file) == "adapter"


@pytest.fixture
def nan_model(demo_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "nan.gguf"
    data = bytearray(demo_model.read_bytes())
    with open_gguf(demo_model) as file:
        info = next(one for one in file.tensors if one.name == "blk.3.ffn_down.weight")
    data[info.offset + 1554 : info.offset + 1556] = np.float16("nan").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("measure", ["perplexity", "imatrix", "bench"])
def test_nan_stops_at_the_first_chunk_and_nothing_is_saved(nan_model: Path, tmp_path: Path, measure: str) -> None:
    model, base = str(nan_model), tmp_path / "base.kld"
    job: Job = {
        "perplexity": PerplexityJob(model, str(TEXT), n_ctx=16, n_batch=16, n_chunks=50, save_base=str(base)),
        "imatrix": ImatrixJob(model, str(TEXT), n_ctx=16, n_batch=16, n_chunks=50, perplexity=False),
        "bench": BenchJob(model, [[16, 0]], 1),
    }[measure]
    run, seen = EngineRun(ONE_THREAD, job), []
    with pytest.raises(EngineError, match=r"NaN.*`surgeon verify` names"):
        seen += perplexity(run) if measure == "perplexity" else run.messages()
    assert not base.exists()
    assert not [message for message in seen if type(message).__name__ in ("Step", "Snapshot")]


def test_the_reason_of_llama_cpp_is_in_the_line(demo_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "less.gguf"
    with open_gguf(demo_model) as file:
        tensors = {
            info.name: (info.type_name, info.ne, file.data(info).tobytes())
            for info in file.tensors
            if info.name != "blk.1.attn_k.weight"
        }
        build_gguf(path, dict(file.kv), tensors)
    with pytest.raises(EngineError, match=r"cannot load this model: .*blk\.1\.attn_k\.weight"):
        list(EngineRun(ONE_THREAD, PerplexityJob(str(path), str(TEXT), n_ctx=16)).messages())


_SAY = "import sys, time; say = sys.stdout.buffer.write; "
BABBLE = {
    "hangs": "import time; time.sleep(60)",
    "hangs in a frame": _SAY + "say(b'\\x10\\0\\0\\0{'); sys.stdout.flush(); time.sleep(60)",
    "garbage": "import sys, time; sys.stdout.buffer.write(b'\\xff' * 100); sys.stdout.flush(); time.sleep(60)",
    "no JSON": "import sys; sys.stdout.buffer.write(b'\\4\\0\\0\\0abcd')",
    "nested": "import sys; t = b'[' * 100000; sys.stdout.buffer.write(len(t).to_bytes(4, 'little') + t)",
    "closes and stays": "import os, time; os.close(1); time.sleep(60)",
    "another kind": _SAY + 't = b\'{"kind": [], "fields": {}}\'; say(bytes([len(t), 0, 0, 0]) + t)',
}


@pytest.mark.parametrize("code", BABBLE.values(), ids=BABBLE)
def test_a_child_that_hangs_or_babbles_is_a_line(monkeypatch: pytest.MonkeyPatch, demo_model: Path, code: str) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(log: IO[bytes]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=log))
        return started[0]

    monkeypatch.setattr(client, "_start", start)
    monkeypatch.setattr(client, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(client, "LEAVING_SECONDS", 1.0)
    with pytest.raises(EngineError) as caught:
        list(EngineRun(ONE_THREAD, PerplexityJob(str(demo_model), str(TEXT), n_ctx=16)).messages())
    assert "engine" in str(caught.value) or "llama.cpp ended" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert started[0].returncode is not None
