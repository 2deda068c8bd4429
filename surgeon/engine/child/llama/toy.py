"""A toy model whose logits are known in closed form: run before any real model, it shows that the structs fit.

One llama block whose weights are all zero passes its input through, so the logits must be
W_output · (x / sqrt(mean(x²) + ε) · w_norm) for each token's embedding x. The callback must see the block's matrices
by name.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.graph import Node
from surgeon.engine.child.llama.model import ContextSize, EvalCallback, LlamaModel, opened
from surgeon.engine.errors import INSTALL, EngineError, EngineMissing

_WIDTH, _VOCAB, _EPSILON = 32, 64, 1e-5
_TOKENS = np.array([1, 5, 9, 63], np.int32)
_TOLERANCE = 2e-2  # back ends multiply in half precision


def check(binding: Binding, n_gpu_layers: int = 0) -> None:
    """Run the toy model. Raises EngineMissing where the logits or the callback are not what they must be."""
    generator = np.random.default_rng(7)
    embeddings = generator.standard_normal((_VOCAB, _WIDTH)).astype(np.float32)
    output = generator.standard_normal((_VOCAB, _WIDTH)).astype(np.float32)
    seen: set[str] = set()

    def watch(address: int, ask: bool) -> bool:
        node = Node(binding, address)
        if ask and node.op == binding.mul_mat and (weight := node.source(0)) is not None:
            seen.add(weight.weight_name)
        return not ask

    with _nowhere() as path:
        _write(path, embeddings, output)
        try:
            found = _logits(binding, path, n_gpu_layers, watch)
        except EngineError as error:
            raise _unfit(binding, str(error)) from error
    worst = float(np.abs(found - _expected(embeddings, output)).max())
    if not worst <= _TOLERANCE:
        raise _unfit(binding, f"its logits are off by {worst:.3g}")
    if "blk.0.attn_q.weight" not in seen:
        raise _unfit(binding, "the eval callback does not see the matrices")


@contextmanager
def _nowhere() -> Iterator[Path]:
    """A place for the file: in memory, where nothing is left of it however the process ends, if the system has that."""
    if sys.platform.startswith("linux"):
        handle = os.memfd_create("surgeon-toy")
        try:
            yield Path(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
    else:
        with tempfile.TemporaryDirectory(prefix="surgeon-toy-") as folder:
            yield Path(folder, "toy.gguf")


def _logits(binding: Binding, path: Path, n_gpu_layers: int, watch: EvalCallback) -> NDArray[np.float32]:
    model = LlamaModel(binding, str(path), n_gpu_layers)
    try:
        size = ContextSize(n_ctx=256, n_batch=64, n_ubatch=64)
        with opened(model, size, threads=1, callback=watch) as context:
            positions = np.arange(len(_TOKENS), dtype=np.int32)
            every = np.ones(len(_TOKENS), np.bool_)
            return context.decode(_TOKENS, positions, np.zeros(len(_TOKENS), np.int32), every).copy()
    finally:
        model.close()


def _expected(embeddings: NDArray[np.float32], output: NDArray[np.float32]) -> NDArray[np.float32]:
    x = embeddings[_TOKENS]
    normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + _EPSILON)
    return np.asarray(normed @ output.T, np.float32)


def _unfit(binding: Binding, why: str) -> EngineMissing:
    return EngineMissing(
        f"{binding.libraries.llama}: llama.cpp {binding.version} fails the toy model ({why}), so its figures cannot "
        f"be trusted; {INSTALL}"
    )


def _write(path: Path, embeddings: NDArray[np.float32], output: NDArray[np.float32]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(_EPSILON)
    _write_vocabulary(writer)
    ones, zeros = np.ones(_WIDTH, np.float32), np.zeros((_WIDTH, _WIDTH), np.float32)
    tensors = {"token_embd.weight": embeddings, "output_norm.weight": ones, "output.weight": output}
    for name in "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split():
        tensors[f"blk.0.{name}.weight"] = zeros
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = ones
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: Any) -> None:
    """A SentencePiece vocabulary of <unk>, <s>, </s> and invented words."""
    pieces = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, _VOCAB))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(number) for number in range(_VOCAB)])
    writer.add_token_types([2, 3, 3, *([1] * (_VOCAB - 3))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
