"""Binary files that were good once, mutated: GGUFs of every kind, old matrices, saved log-probabilities, messages."""

from __future__ import annotations

import io
import random
import struct
from functools import cache
from pathlib import Path

import numpy as np

from surgeon.engine.child.evaluation.base_file import BaseWriter
from surgeon.engine.child.evaluation.windows import Rows
from surgeon.engine.frames import write_message
from surgeon.engine.protocol import Finished, Snapshot, Step
from surgeon.gguf.header import DEFAULT_ALIGNMENT
from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value, ValueType
from surgeon.healing.heal_file import HeldOut, NewTensor, Origin, Refit, save_heal
from surgeon.imatrix.files import dat_bytes
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, save
from surgeon.moments.files import write_moments
from surgeon.moments.moments import Head, Input
from surgeon.write_guard import REPLACE
from surgeon_kernels.formats import FORMATS

EDGES = (0, 1, 2, 3, 8, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e38, 1e-45)
NAME, EXPERTS = "blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"


def mutated(rng: random.Random, good: bytes) -> bytes:
    """A few changes: bytes, numbers of four and eight bytes, pieces taken out, put in or cut off."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data)) if data else 0
        match rng.randrange(7):
            case 0 | 1:
                data[place : place + 1] = bytes([rng.choice((0, 1, 7, 8, 9, 27, 127, 128, 255, rng.randrange(256)))])
            case 2:
                data[place : place + 4] = struct.pack("<I", rng.choice(EDGES) % 2**32)
            case 3:
                data[place : place + 8] = struct.pack("<Q", rng.choice(EDGES))
            case 4:
                data[place : place + 4] = struct.pack("<f", rng.choice(FLOATS))
            case 5:
                del data[place : place + rng.choice((1, 4, 8, 32))]
            case _:
                data[place:place] = bytes(rng.choice((1, 4, 8, 32)))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


@cache
def model() -> bytes:
    """Two layers, one with experts, types of every sort, a vocabulary."""
    names = [f"t{number}" for number in range(8)]
    kv = {
        "general.architecture": Value.of(ValueType.STRING, "llama"),
        "general.name": Value.of(ValueType.STRING, "fuzzed"),
        **{
            f"llama.{key}": Value.of(ValueType.UINT32, value)
            for key, value in {
                "block_count": 2, "context_length": 64, "embedding_length": 64, "feed_forward_length": 64,
                "attention.head_count": 4, "attention.head_count_kv": 2, "expert_count": 4, "expert_used_count": 2,
            }.items()
        },
        "llama.attention.layer_norm_rms_epsilon": Value.of(ValueType.FLOAT32, 1e-5),
        "tokenizer.ggml.model": Value.of(ValueType.STRING, "llama"),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, names),
        "tokenizer.ggml.scores": Value.array(ValueType.FLOAT32, [0.0] * 8),
        "tokenizer.ggml.bos_token_id": Value.of(ValueType.UINT32, 1),
    }  # fmt: skip
    shapes = {
        "token_embd.weight": ("F16", (64, 8)), "output_norm.weight": ("F32", (64,)), NAME: ("Q4_0", (64, 64)),
        "blk.0.attn_k.weight": ("Q8_0", (64, 32)), "blk.0.attn_norm.weight": ("F32", (64,)),
        "blk.1.ffn_gate_inp.weight": ("F32", (64, 4)), EXPERTS: ("BF16", (64, 64, 4)),
        "blk.1.attn_v.weight": ("F64", (64, 2)), "output.weight": ("Q5_1", (64, 8)),
    }  # fmt: skip
    return _gguf(kv, shapes)


def _gguf(kv: dict[str, Value], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    rng = np.random.default_rng(1)
    entries = []
    for name, (type_name, ne) in shapes.items():
        kind = FORMATS[type_name]
        entries.append(Entry(name, ne, kind.number, kind.row_bytes(ne[0]) * int(np.prod(ne[1:], dtype=np.int64))))
    layout = header(list(kv.items()), entries, DEFAULT_ALIGNMENT)
    out = bytearray(layout.data.ljust(layout.total_bytes, b"\0"))
    for entry, offset in zip(entries, layout.offsets, strict=True):
        out[offset : offset + entry.nbytes] = rng.integers(0, 60, entry.nbytes, np.uint8).tobytes()
    return bytes(out)


def matrix() -> Imatrix:
    rng = np.random.default_rng(2)
    return Imatrix(
        Path("i"),
        {
            NAME: ImatrixEntry(rng.random((1, 64), np.float32), np.array([64])),
            EXPERTS: ImatrixEntry(rng.random((4, 64), np.float32), np.array([10, 0, 3, 7])),
        },
        ("text",), 1, 64,
    )  # fmt: skip


@cache
def imatrix(folder: Path) -> bytes:
    """With block influence, as surgeon collects it."""
    path = folder / "good.imatrix"
    save(matrix(), Influence(np.ones((2, 5)), {NAME: np.ones(64, np.float32)}), path, permit=REPLACE)
    return path.read_bytes()


@cache
def old_imatrix() -> bytes:
    return dat_bytes(matrix())


class _Sums:
    """Second moments of two inputs."""

    def __init__(self) -> None:
        self.inputs = {
            NAME: Input(NAME, 8, 1, np.array([[5, 4]])),
            EXPERTS: Input(EXPERTS, 8, 2, np.array([[5, 4], [0, 0]])),
        }
        self.users = {NAME: NAME, "blk.0.attn_k.weight": NAME, EXPERTS: EXPERTS}

    def sums(self, _one: Input, _matrix: int, half: int) -> list[np.ndarray]:
        return [np.eye(8, dtype=np.float32) * (half + 1)]


@cache
def moments(folder: Path) -> bytes:
    path = folder / "good.moments"
    for _ in write_moments(path, Head(0, 2, "m", "n", ("t",), 3, 64), [_Sums()], REPLACE):
        pass
    return path.read_bytes()


@cache
def heal(folder: Path) -> bytes:
    path = folder / "good.heal"
    refits = (Refit(NAME, "ridge", 0.1, 0.2, 1.0, 0.5),)
    origin = Origin("m", "id", frozenset({1}), ("t",), ("00",), (3,), 64, 99, refits, (HeldOut("h", 1.0, 0.5),))
    data = np.ones((4, 32), np.float16).tobytes()
    entry = Entry(NAME, (32, 4), FORMATS["F16"].number, len(data))
    save_heal(path, "llama", origin, [NewTensor(entry, lambda: [data])], REPLACE)
    return path.read_bytes()


@cache
def base(folder: Path) -> bytes:
    """Saved log-probabilities of two chunks."""
    path = folder / "good.kld"
    chunks = np.arange(16, dtype=np.int32).reshape(2, 8)
    logits = np.linspace(-3, 3, 4 * 40, dtype=np.float32).reshape(4, 40)
    with BaseWriter(str(path), chunks, 40) as writer:
        for chunk in range(2):
            writer.add(Rows(chunk, 4, logits[:3], chunks[chunk, 5:], True))
        writer.finish()
    return path.read_bytes()


@cache
def messages() -> bytes:
    """What the engine's child writes."""
    stream = io.BytesIO()
    arrays = {f"squares:{NAME}": np.ones(8), f"count:{NAME}": np.array([3])}
    for message in (Step(1, 2, {"ppl": 1.5}), Snapshot(1, 64, arrays), Finished({"ppl": float("nan")})):
        write_message(stream, message)
    return stream.getvalue()
