"""A loaded model and its context: tokens in, logits out."""

from __future__ import annotations

import contextlib
import ctypes as c
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.layouts import EVAL_CALLBACK, Batch
from surgeon.engine.errors import EngineError

NOT_A_NUMBER = "the model's output is NaN; `surgeon verify` names the tensor at fault"
Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]
# (address of the ggml_tensor, True: "will you want it?" or False: "here it is") -> wanted / go on
EvalCallback = Callable[[int, bool], bool]


_LOAD_NOTHING_MAPPED = 0  # enum llama_load_mode


@dataclass(frozen=True, slots=True)
class ContextSize:
    """n_ctx: tokens per sequence; n_seq: sequences at once; n_batch, n_ubatch: tokens per decode and per graph.

    unified: all sequences share one cache of n_ctx tokens (needed where a token belongs to several sequences).
    """

    n_ctx: int
    n_seq: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    unified: bool = False

    @property
    def total(self) -> int:
        """Tokens of the whole cache."""
        return self.n_ctx if self.unified else self.n_ctx * self.n_seq


class LlamaModel:
    """A model file loaded by llama.cpp. Raises EngineError where it does not load.

    no_alloc: lay its tensors out only, so that contexts can be sized but not run.
    """

    def __init__(self, binding: Binding, path: str, n_gpu_layers: int = 0, *, no_alloc: bool = False) -> None:
        if not Path(path).is_file():
            raise EngineError(f"{path}: no such file")
        self.binding, self.path = binding, path
        params = binding.llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        if no_alloc:
            params.no_alloc, params.load_mode = True, _LOAD_NOTHING_MAPPED
        self._handle = binding.llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._handle:
            reason = binding.last_error
            raise EngineError(f"{path}: llama.cpp cannot load this model{': ' + reason if reason else ''}")
        self.vocab = binding.llama.llama_model_get_vocab(self._handle)
        self.n_vocab: int = binding.llama.llama_vocab_n_tokens(self.vocab)
        self.n_layer: int = binding.llama.llama_model_n_layer(self._handle)
        self.n_ctx_train: int = binding.llama.llama_model_n_ctx_train(self._handle)
        self.n_embd_out: int = binding.llama.llama_model_n_embd_out(self._handle)
        self.n_params: int = binding.llama.llama_model_n_params(self._handle)
        self.nbytes: int = binding.llama.llama_model_size(self._handle)
        self.bos: int | None = None
        if binding.llama.llama_vocab_get_add_bos(self.vocab):
            self.bos = binding.llama.llama_vocab_bos(self.vocab)

    @property
    def handle(self) -> int:
        address: int = self._handle
        return address

    @property
    def description(self) -> str:
        """llama.cpp's own words: `llama 12M F16`."""
        buffer = c.create_string_buffer(128)
        self.binding.llama.llama_model_desc(self._handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace").replace(" ?B", "")  # a size that it has no name for

    def tokenize(self, text: bytes, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Token numbers of a UTF-8 text, with BOS/EOS as the vocabulary says if `add_special`."""
        function = self.binding.llama.llama_tokenize
        count = -function(self.vocab, text, len(text), None, 0, add_special, parse_special)
        if count <= 0:
            return np.empty(0, np.int32)
        tokens = np.empty(count, np.int32)
        written = function(self.vocab, text, len(text), tokens.ctypes.data, count, add_special, parse_special)
        if written != count:
            raise EngineError(f"{self.path}: llama.cpp counted {count} tokens, then gave {written}")
        return tokens

    def close(self) -> None:
        self.binding.llama.llama_model_free(self._handle)


class Context:
    """A context over `model`. The callback, if any, sees every node of the graph; see EvalCallback.

    settings: further fields of llama_context_params.
    """

    def __init__(
        self,
        model: LlamaModel,
        size: ContextSize,
        threads: int,
        callback: EvalCallback | None = None,
        settings: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.size = model, size
        self._llama = model.binding.llama
        self._failures: list[BaseException] = []
        params = self._llama.llama_context_default_params()
        params.n_ctx = size.total
        params.n_batch, params.n_ubatch = size.n_batch, min(size.n_ubatch, size.n_batch)
        params.n_seq_max = size.n_seq
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = size.unified
        for name, value in (settings or {}).items():
            setattr(params, name, value)
        if callback is not None:
            self._callback = EVAL_CALLBACK(_guard(callback, self._failures))  # must live as long as the context
            params.cb_eval = self._callback
        self._handle = self._llama.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise EngineError(
                f"{model.path}: llama.cpp cannot make a context of {size.total} tokens "
                "(too little memory, or a model that does not generate text)"
            )

    def clear(self) -> None:
        """Forget all sequences."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._handle), True)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked."""
        self._llama.llama_synchronize(self._handle)

    def decode(
        self,
        tokens: Tokens,
        positions: Tokens,
        sequences: Tokens | Sequence[Sequence[int]],
        outputs: NDArray[np.bool_],
    ) -> Logits:
        """Run n ≤ n_batch tokens; returns float32[count of outputs, n_vocab], a view that the next decode overwrites.

        sequences: one sequence number per token, or several (the token then belongs to all of them).
        Raises EngineError where llama.cpp refuses, and whatever the callback raised.
        """
        batch, keep = _batch(tokens, positions, sequences, outputs)
        code = self._llama.llama_decode(self._handle, batch)
        del keep
        if self._failures:
            raise self._failures.pop()
        if code != 0:
            raise EngineError(f"{self.model.path}: llama.cpp failed while decoding {len(tokens)} tokens (code {code})")
        rows = int(np.count_nonzero(outputs))
        address = self._llama.llama_get_logits(self._handle)
        if not address:
            raise EngineError(f"{self.model.path}: llama.cpp gave no logits")
        count = rows * self.model.n_vocab
        flat = np.ctypeslib.as_array((c.c_float * count).from_address(address))
        logits = flat.reshape(rows, self.model.n_vocab)
        if np.isnan(logits[:, 0]).any():  # a NaN before the last matrix is in every logit of its position
            raise EngineError(f"{self.model.path}: {NOT_A_NUMBER}")
        return logits

    def embedding(self, tokens: Tokens) -> NDArray[np.float32]:
        """The pooled embedding float32[width] of a text, of a context with `embeddings`. Raises as `decode`."""
        self.clear()
        count = len(tokens)
        positions = np.arange(count, dtype=np.int32)
        batch, keep = _batch(tokens, positions, np.zeros(count, np.int32), np.ones(count, np.bool_))
        code = self._llama.llama_decode(self._handle, batch)
        del keep
        if code != 0:
            raise EngineError(f"{self.model.path}: llama.cpp failed while embedding {count} tokens (code {code})")
        address = self._llama.llama_get_embeddings_seq(self._handle, 0)
        if not address:
            raise EngineError(f"{self.model.path}: llama.cpp gave no embedding")
        return np.ctypeslib.as_array((c.c_float * self.model.n_embd_out).from_address(address)).copy()

    def decode_rows(self, rows: NDArray[np.float32]) -> None:
        """Run float32[n, d_model] in the place of n embedded tokens, from position 0 on, every one an output.

        What comes of it is seen by the callback only. Raises as `decode` does.
        """
        count = len(rows)
        values = np.ascontiguousarray(rows, np.float32)
        numbers = np.arange(count, dtype=np.int32)
        batch, keep = _batch(numbers, numbers, np.zeros(count, np.int32), np.ones(count, np.bool_))
        batch.token, batch.embd = None, values.ctypes.data
        code = self._llama.llama_decode(self._handle, batch)
        del keep
        if self._failures:
            raise self._failures.pop()
        if code != 0:
            raise EngineError(f"{self.model.path}: llama.cpp failed while running {count} tokens (code {code})")

    def close(self) -> None:
        self._llama.llama_free(self._handle)


def _batch(
    tokens: Tokens, positions: Tokens, sequences: Tokens | Sequence[Sequence[int]], outputs: NDArray[np.bool_]
) -> tuple[Batch, list[NDArray[np.generic]]]:
    """A llama_batch over numpy memory, and the arrays that must live while it is used."""
    if isinstance(sequences, np.ndarray):
        flat, counts = sequences.astype(np.int32), np.ones(len(tokens), np.int32)
    else:
        flat = np.array([number for group in sequences for number in group], np.int32)
        counts = np.array([len(group) for group in sequences], np.int32)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    pointers = (flat.ctypes.data + starts * flat.itemsize).astype(np.uintp)
    arrays: list[NDArray[np.generic]] = [
        np.ascontiguousarray(tokens, np.int32),
        np.ascontiguousarray(positions, np.int32),
        counts,
        pointers,
        np.ascontiguousarray(outputs, np.int8),
        flat,
    ]
    token, position, count, pointer, flags = (array.ctypes.data for array in arrays[:5])
    return Batch(len(tokens), token, None, position, count, pointer, flags), arrays


def _guard(callback: EvalCallback, failures: list[BaseException]) -> Callable[[int, bool, int | None], bool]:
    """No exception may cross the C frames: it is kept, the graph stopped, and raised again after the decode."""

    def guarded(address: int, ask: bool, _data: int | None) -> bool:
        try:
            return callback(address, ask)
        except BaseException as error:
            failures.append(error)
            return False

    return guarded


@contextlib.contextmanager
def opened(
    model: LlamaModel,
    size: ContextSize,
    threads: int,
    callback: EvalCallback | None = None,
    settings: Mapping[str, int] | None = None,
) -> Iterator[Context]:
    """A Context that is freed at the end."""
    context = Context(model, size, threads, callback, settings)
    try:
        yield context
    finally:
        context.close()
