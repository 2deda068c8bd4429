"""One layer of a model in a file of its own that llama.cpp runs, and its output matrices as arrays.

Everything else is left out as pruning does it, so a layer keeps its role. Where layers have roles one of another role
comes along: llama.cpp does not run a model whose layers are all of the rarer one. The vocabulary shrinks to a few
tokens, which are never read: the layer gets streams in their place.
"""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.anatomy import layer_roles
from surgeon.engine.protocol import HealLayer
from surgeon.errors import SurgeonError
from surgeon.gguf.file import ValueType
from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value
from surgeon.model.model import Model, Tensor
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.resolve.tensor_op import TensorOp

_VOCABULARY = 32  # rows kept of the embeddings; some back ends want a multiple of a block
_TOKENIZER = "tokenizer."
# kind -> the norms that architectures put behind its branch
GAINS = {"attn_output": "post_attention_norm", "ffn_down": "post_ffw_norm"}
EXPERTS = "ffn_down_exps"


def write_layer(model: Model, number: int, folder: Path, *, pruned: bool, know_risks: bool, experts: bool) -> HealLayer:
    """Write layer `number`; raises SurgeonError where its architecture does not allow that.

    experts: with the output matrices of its experts as an array too.
    """
    path = folder / f"layer-{number}.gguf"
    kept = {number, *_companion(model, number)}
    others = frozenset(layer.index for layer in model.layers) - kept
    resolution = resolve(model, Plan(pruned=others, know_risks=know_risks))
    if resolution.errors:
        raise SurgeonError(f"{model.file.path}: layer {number} cannot be run alone: {resolution.errors[0].text}")
    if any(op.slice is not None for op in resolution.kept):
        raise SurgeonError(
            f"{model.file.path}: {model.architecture} keeps tensors of all layers side by side; it cannot be healed"
        )
    tokens = _vocabulary(model)
    entries = [_entry(op, tokens) for op in resolution.kept]
    layout = header(_metadata(model, resolution.metadata), entries, resolution.alignment)
    try:
        with path.open("wb") as file:
            file.write(layout.data)
            for op, entry, offset in zip(resolution.kept, entries, layout.offsets, strict=True):
                file.write(b"\0" * (offset - file.tell()))
                file.write(_bytes(model, op, entry.nbytes).data)
            file.write(b"\0" * (layout.total_bytes - file.tell()))
        branches = {} if pruned else _branches(model, number, folder)
        if experts and not pruned:
            branches |= _expert_branch(model, number, folder)
    except OSError as error:
        raise SurgeonError(f"{folder}: cannot be written: {error.strerror}; make room") from error
    epsilon = model.hparam("attention.layer_norm_rms_epsilon", 1e-6)
    return HealLayer(number, str(path), sorted(kept).index(number), pruned, float(epsilon), branches)


def repair_layers(model: Model, folder: Path) -> list[dict[str, Any]]:
    """PruneScanJob.repairs: the output matrices of all layers as arrays in `folder`, no layer in a file of its own."""
    lacking = [layer.index for layer in model.layers if all(one.short != "ffn_down" for one in layer.tensors)]
    if lacking:
        raise SurgeonError(
            f"{model.file.path}: layer {lacking[0]} has no ffn_down matrix to heal (a scan does not refit experts); "
            "leave out --healed"
        )
    epsilon = float(model.hparam("attention.layer_norm_rms_epsilon", 1e-6))
    return as_dicts(
        [HealLayer(layer.index, "", 0, False, epsilon, _branches(model, layer.index, folder)) for layer in model.layers]
    )


def as_dicts(layers: list[HealLayer]) -> list[dict[str, Any]]:
    """As HealJob wants them."""
    return [asdict(layer) for layer in layers]


def _companion(model: Model, number: int) -> list[int]:
    """The nearest layer of another role, one behind it if possible: that is loaded but never run."""
    roles = layer_roles(model)
    others = [layer for layer, role in roles.items() if role != roles[number]]
    return sorted(others, key=lambda layer: (layer < number, abs(layer - number)))[:1]


def _vocabulary(model: Model) -> int:
    embeddings = next((tensor for tensor in model.others if tensor.name == "token_embd.weight"), None)
    if embeddings is None:
        raise SurgeonError(f"{model.file.path}: has no token_embd.weight; it cannot be healed")
    return embeddings.ne[1]


def _entry(op: TensorOp, tokens: int) -> Entry:
    ne, nbytes = op.ne, op.nbytes
    if op.tensor.layer is None and len(ne) > 1 and ne[-1] == tokens:
        ne, nbytes = (*ne[:-1], _VOCABULARY), nbytes // tokens * _VOCABULARY
    return Entry(op.name, ne, op.tensor.info.type_id, nbytes)


def _bytes(model: Model, op: TensorOp, nbytes: int) -> NDArray[np.uint8]:
    data = np.empty(nbytes, np.uint8)
    model.file.read_into(op.tensor.info, 0, data)
    if op.scale is not None:
        data.view(np.float32)[...] *= np.float32(op.scale)
    return data


def _metadata(model: Model, metadata: tuple[tuple[str, Value], ...]) -> list[tuple[str, Value]]:
    size = f"{model.architecture}.vocab_size"
    kept = [(key, value) for key, value in metadata if not key.startswith(_TOKENIZER) and key != size]
    return [
        *kept,
        ("tokenizer.ggml.model", Value.of(ValueType.STRING, "none")),
        (size, Value.of(ValueType.UINT32, _VOCABULARY)),
    ]


def _branches(model: Model, number: int, folder: Path) -> dict[str, dict[str, str]]:
    """The output matrices that are there as one matrix each."""
    layer = next(layer for layer in model.layers if layer.index == number)
    there = {tensor.short: tensor for tensor in layer.tensors}
    found = {}
    for kind, gain in GAINS.items():
        if kind not in there or len(there[kind].ne) != 2:
            continue
        parts = {"weight": there[kind], "bias": there.get(f"{kind}.bias"), "gain": there.get(gain)}
        found[kind] = {
            name: _saved(model, tensor, folder / f"{number}-{kind}-{name}.npy")
            for name, tensor in parts.items()
            if tensor is not None
        }
    return found


def _expert_branch(model: Model, number: int, folder: Path) -> dict[str, dict[str, str]]:
    """The output matrices of the layer's experts, side by side."""
    layer = next(layer for layer in model.layers if layer.index == number)
    tensor = next((tensor for tensor in layer.tensors if tensor.short == EXPERTS), None)
    if tensor is None:
        return {}
    return {EXPERTS: {"weight": _saved_experts(model, tensor, folder / f"{number}-{EXPERTS}.npy")}}


def _saved(model: Model, tensor: Tensor, path: Path) -> str:
    np.save(path, restored(model, tensor))
    return str(path)


def _saved_experts(model: Model, tensor: Tensor, path: Path) -> str:
    """One after the other: all together need not fit in memory."""
    columns, rows, experts = tensor.ne
    with path.open("wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": (experts, rows, columns)}
        np.lib.format.write_array_header_1_0(file, head)
        for expert in range(experts):
            file.write(_restored(model, tensor, expert * rows, rows).data)
    return str(path)


def restored(model: Model, tensor: Tensor) -> NDArray[np.float32]:
    """A tensor as float32, [rows, columns] or [columns]. Raises SurgeonError where its type is not readable."""
    return _restored(model, tensor, 0, prod(tensor.ne[1:])).reshape(tensor.ne[::-1])


def _restored(model: Model, tensor: Tensor, first: int, rows: int) -> NDArray[np.float32]:
    """`rows` rows from row `first` on, float32[rows, columns]."""
    row_bytes = tensor.nbytes // prod(tensor.ne[1:])
    data = np.empty(rows * row_bytes, np.uint8)
    model.file.read_into(tensor.info, first * row_bytes, data)
    if tensor.type_name == "F32":
        values = data.view(np.float32)
    else:
        try:
            values = surgeon_kernels.dequantize(data.reshape(rows, -1), tensor.type_name)
        except ValueError as error:
            raise SurgeonError(f"{model.file.path}: tensor {tensor.name!r}: {error}") from None
    return values.reshape(rows, -1)
