"""What collecting second moments takes: memory while it runs, room on the disk. Reckoned from the model's header.

The graph decides which weights share an input; here the usual ones do (attn_q, attn_k and attn_v; ffn_gate and ffn_up).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from surgeon import figures
from surgeon.engine.raw_moments import panel_values
from surgeon.errors import SurgeonError
from surgeon.model.categories import kept_because
from surgeon.model.model import Model, Tensor
from surgeon.moments.triangle import packed_length

_SHARED = re.compile(r"(attn)_[qkv]$|(ffn)_(?:gate|up)((?:_exps|_shexp)?)$")
_HEADS = ("output.weight", "token_embd.weight")
_ROUTER = "ffn_gate_inp"


@dataclass(frozen=True, slots=True)
class Account:
    """inputs: distinct ones; memory, disk: bytes held and written until the end; file: bytes of the result."""

    inputs: int
    memory: int
    disk: int
    file: int


@dataclass(frozen=True, slots=True)
class _Shape:
    columns: int
    matrices: int


def reckon(model: Model, block: int = 0, halves: int = 2, layers: Collection[int] | None = None) -> Account:
    """What collecting takes for the inputs of these layers (None: all)."""
    shapes = distinct_inputs(model, layers)
    memory = sum(4 * halves * one.matrices * panel_values(one.columns, block) for one in shapes)
    file = sum(halves * one.matrices * (2 * packed_length(one.columns, block) + 4 * one.columns + 8) for one in shapes)
    return Account(len(shapes), memory, memory + file, file)


def distinct_inputs(model: Model, layers: Collection[int] | None = None) -> list[_Shape]:
    """The inputs that the weights of these layers have between them, and the head's, which goes with the last layer."""
    found: dict[tuple[int | None, str], _Shape] = {}
    for tensor in model.tensors:
        if tensor.layer is not None and (layers is None or tensor.layer in layers) and _is_multiplied(model, tensor):
            matrices = tensor.ne[2] if len(tensor.ne) > 2 else 1
            found.setdefault((tensor.layer, _input(tensor.short)), _Shape(tensor.ne[0], matrices))
    heads = [tensor for name in _HEADS for tensor in model.others if tensor.name == name]
    if layers is not None and model.layers and model.layers[-1].index not in layers:
        return list(found.values())
    return [*found.values(), *(_Shape(tensor.ne[0], 1) for tensor in heads[:1])]


def refuse_too_large(account: Account, folder: Path, n_layers: int) -> None:
    """Raises SurgeonError where this machine has not the memory, or the folder's disk not the room."""
    memory, room = available_memory(), shutil.disk_usage(folder).free
    passes = max(2, -(-account.memory // max(memory // 2, 1)))
    last = max(0, -(-n_layers // passes) - 1)
    remedy = (
        f"collect them in {min(passes, n_layers)} passes into one file, the first with --layers 0-{last}, or keep only "
        "diagonal blocks of wide inputs with --moments-block 1024"
    )
    if account.memory > memory:
        raise SurgeonError(
            f"second moments of {account.inputs} inputs take {figures.memory(account.memory)} of memory, and "
            f"{figures.memory(memory)} are free: {remedy}"
        )
    if account.disk > room:
        raise SurgeonError(
            f"{folder}: second moments of {account.inputs} inputs take {figures.size(account.disk)} until they are "
            f"written, and {figures.size(room)} are free: name another folder, or {remedy}"
        )


def available_memory() -> int:
    """Bytes that programs may still take; all the machine's where the system does not say."""
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_multiplied(model: Model, tensor: Tensor) -> bool:
    if tensor.short == _ROUTER:
        return True
    return kept_because(tensor.name, tensor.ne, model.architecture) is None


def _input(short: str) -> str:
    match = _SHARED.fullmatch(short)
    return short if match is None else f"{match[1] or match[2]} in{match[3] or ''}"
