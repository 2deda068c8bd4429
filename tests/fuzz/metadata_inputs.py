"""Models whose metadata hold anything, and plans that ask for anything: the seed decides."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.anatomy.table import ANATOMIES, ARCHITECTURES, LAYER_NUMBERS, NOT_PER_LAYER, PER_LAYER_ABSOLUTE
from surgeon.gguf.file import GGUFFile, TensorInfo
from surgeon.gguf.header import Shard
from surgeon.gguf.values import ARRAY_HEAD, CODES, Value, ValueType
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.model.layer_keys import PER_LAYER
from surgeon.model.model import Model, model_of
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import KVOverride, Plan, TypeRule
from surgeon_kernels.formats import FORMATS

EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 47, 64, 80, 127, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
FLOATS = (0.0, 1.0, -1.0, 1e-5, 3e38, float("inf"), float("nan"), 0.5)
_COUNTS = """
block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
attention.key_length attention.q_lora_rank attention.sliding_window attention.shared_kv_layers expert_count
expert_used_count expert_gating_func vocab_size residual_scale nextn_predict_layers leading_dense_block_count
expert_group_count expert_group_used_count experts_per_group expert_feed_forward_length expert_shared_count
n_deepstack_layers decision.block_count hash_layer_count full_attention_interval interleave_moe_layer_step
moe_every_n_layers rescale_every_n_layers attn_res.block_size pooling_type ple.layers
""".split()
KEYS = sorted({*_COUNTS, *PER_LAYER, *LAYER_NUMBERS, *NOT_PER_LAYER})
GENERAL = (
    "general.alignment general.file_type general.name general.type general.quantization_version split.no split.count "
    "split.tensors.count surgeon.pruned_layers surgeon.source tokenizer.ggml.tokens tokenizer.ggml.scores "
    "tokenizer.ggml.model quantize.imatrix.file"
).split() + sorted(PER_LAYER_ABSOLUTE)
NAMES = """
attn_q.weight attn_k.weight attn_v.weight attn_qkv.weight attn_output.weight ffn_down.weight ffn_up_exps.weight
ffn_gate_inp.weight attn_norm.weight attn_q_norm.weight ssm_conv1d.weight nextn.eh_proj.weight attn_q.bias
""".split()
OF_EXPERTS = """
ffn_up_exps.weight ffn_down_exps.weight ffn_gate_up_exps.weight ffn_up_exps.bias exp_probs_b.bias
ffn_up_chexps.weight ffn_gate_tid2eid.weight ffn_down_exps.scale
""".split()
OTHERS = """
token_embd.weight output.weight output_norm.weight per_layer_token_embd.weight per_layer_model_proj.weight
v.blk.0.attn_q.weight enc.blk.1.ffn_up.weight mm.0.weight
""".split()
ALL_ARCHITECTURES = sorted({*ARCHITECTURES, *(name for a in ANATOMIES for name in a.names.split()), "unheard-of", ""})


def scalar(rng: random.Random, type_: ValueType) -> Any:
    if type_ is ValueType.STRING:
        return rng.choice(("", "a", "llama", "\x1b[31m", "9" * 5000, b"\xff\xfe", "imatrix"))
    if type_ is ValueType.BOOL:
        return rng.random() < 0.5
    if type_ in (ValueType.FLOAT32, ValueType.FLOAT64):
        return rng.choice(FLOATS)
    bits = {"b": 8, "h": 16, "i": 32, "q": 64}[CODES[type_].lower()]
    if CODES[type_].islower():
        return rng.choice((-1, -2, -(1 << (bits - 1)), rng.choice(EDGES) % (1 << (bits - 1))))
    return rng.choice(EDGES) % (1 << bits)


def value(rng: random.Random, layers: int, depth: int = 0) -> Value:
    """Of any type; every third an array, a few of those nested or longer than anything in the bytes behind them."""
    if depth > 3 or rng.random() < 0.6:
        type_ = rng.choice([t for t in ValueType if t is not ValueType.ARRAY])
        return Value.of(type_, scalar(rng, type_))
    count = rng.choice((0, 1, max(0, layers - 1), layers, layers, layers, layers + 1, 1000))
    if rng.random() < 0.15:
        inner = Value.array(ValueType.UINT8, [1] * (count % 7))
        return Value(ValueType.ARRAY, ARRAY_HEAD.pack(ValueType.ARRAY, count) + inner.raw * count)
    type_ = rng.choice([t for t in ValueType if t is not ValueType.ARRAY])
    return Value.array(type_, [scalar(rng, type_) for _ in range(count)])


def model(rng: random.Random) -> Model:
    """Never read from a disk: a header is all that `resolve` looks at."""
    architecture, layers = rng.choice(ALL_ARCHITECTURES), rng.choice((0, 1, 2, 3, 6, 12))
    kv = {"general.architecture": Value.of(ValueType.STRING, architecture)}
    if rng.random() < 0.8:
        kv[f"{architecture}.block_count"] = Value.of(ValueType.UINT32, layers)
    for key in rng.sample(KEYS, rng.randint(0, 10)):
        kv[f"{architecture}.{key}"] = value(rng, layers)
    for key in rng.sample(GENERAL, rng.randint(0, 3)):
        kv[key] = value(rng, layers)
    if rng.random() < 0.1:
        kv[f"{architecture}.unheard_of_layers"] = value(rng, layers)
    chosen = rng.sample(NAMES, 3) if rng.random() < 0.6 else ["ffn_gate_inp.weight", *rng.sample(OF_EXPERTS, 3)]
    names = [f"blk.{layer}.{name}" for layer in range(layers) for name in chosen]
    names += rng.sample(OTHERS, 4)
    if rng.random() < 0.1:
        names.append(f"blk.{rng.choice((layers + 1, 2**32, 10**30))}.attn_q.weight")
    infos = tuple(_tensor(rng, name, 32 * place) for place, name in enumerate(dict.fromkeys(names)))
    file = object.__new__(GGUFFile)
    path = Path("fuzz.gguf")
    file.path, file.paths, file.version, file.alignment, file.kv, file.tensors = path, (path,), 3, 32, kv, infos
    file.shards = (Shard(path, 3, 32, kv, infos, 0, 1 << 20),)
    file.nbytes, file.states, file._fds, file._maps = 1 << 20, (), [], {}
    return model_of(file)


def _tensor(rng: random.Random, name: str, offset: int) -> TensorInfo:
    ne = rng.choice(((256,), (256, 4), (32, 4), (256, 8, 4), (1,), (255, 3), (1, 1, 1, 1), (2**31, 2**31)))
    type_id = rng.choice((0, 1, 2, 8, 12, 14, 16, 24, 30, 39, 4, 31, 99, 2**32 - 1))
    info = TensorInfo(name, ne, type_id, offset, 32)
    if info.format is not None and ne[0] % info.format.block:  # what no file can hold: opening it is refused
        info = info._replace(type_id=0)
    return info


def imatrix(rng: random.Random, model: Model) -> Imatrix | None:
    """Entries for some tensors, of the right size or another."""
    if rng.random() < 0.6:
        return None
    entries = {}
    for tensor in rng.sample(model.tensors, min(len(model.tensors), 4)):
        matrices = tensor.ne[2] if len(tensor.ne) > 2 else 1
        columns = rng.choice((tensor.ne[0], 1, 256))
        if columns * matrices > 1 << 16:
            continue
        counts = np.array([rng.choice((0, 5, 2**40)) for _ in range(matrices)], np.int64)
        entries[tensor.name] = ImatrixEntry(np.ones((matrices, columns), np.float32), counts)
    bad = {"blk.0.attn_q.weight": "blk.0.attn_q.weight has the value nan"} if rng.random() < 0.1 else {}
    entries = {name: entry for name, entry in entries.items() if name not in bad}
    return Imatrix(Path("i"), entries, ("t",), 1, 512, is_legacy=rng.random() < 0.3, bad=bad)


def _expert_sets(rng: random.Random) -> tuple[tuple[int, tuple[int, ...]], ...]:
    if rng.random() < 0.7:
        return ()
    gone = rng.choice(((0,), (1, 3), (0, 1, 2), (7,), (2**32 - 1,), tuple(range(4)), tuple(range(70_000))))
    return tuple((layer, gone) for layer in rng.choice(((0,), (0, 1), (0, 1, 2), (5,), (2**31,))))


def plan(rng: random.Random) -> Plan:
    pruned = rng.choice(
        ([*range(200_000)],)
        if rng.random() < 0.005
        else ((), (), (0,), (1,), (0, 1), (2, 3), (5,), (4_294_967_295,), (2**64,), (11,), (0, 10**9))
    )
    kinds = [name for name in FORMATS if not name.startswith("I")]
    key = f"{rng.choice(ALL_ARCHITECTURES)}.{rng.choice(KEYS)}" if rng.random() < 0.7 else rng.choice(GENERAL)
    kind = rng.choice(("int", "float", "bool", "str"))
    asked = {"int": rng.choice((0, -1, 2**40, 2**70)), "float": rng.choice(FLOATS), "bool": True, "str": "x"}[kind]
    rules = (TypeRule(rng.choice(("ffn", "(", "^blk", ".*")), rng.choice(kinds)),)
    return Plan(
        file_type=rng.choice(list(FILE_TYPES)),
        rules=rules if rng.random() < 0.3 else (),
        types=(("blk.0.attn_q.weight", rng.choice(kinds)),) if rng.random() < 0.2 else (),
        pruned=frozenset(pruned),
        pruned_experts=_expert_sets(rng),
        output_tensor_type=rng.choice((None, None, rng.choice(kinds))),
        override_kv=(KVOverride(key, kind, asked),) if rng.random() < 0.3 else (),
        **{name: rng.random() < 0.2 for name in ("pure", "compat", "keep_split", "know_risks", "allow_requantize")},
    )
