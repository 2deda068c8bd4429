"""How the output is spread over files: one file, the shards of the input, or shards of at most a given size.

Names and keys are those of llama-quantize (`--keep-split`) and llama-gguf-split (`--split-max-size`): a shard is called
`<prefix>-%05d-of-%05d.gguf`, counted from 1, and all other metadata is in the first one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgeon.gguf.file import Value, ValueType
from surgeon.gguf.header import DEFAULT_ALIGNMENT
from surgeon.resolve.tensor_op import TensorOp

SHARD_SUFFIX = re.compile(r"-(\d{5})-of-(\d{5})$")
SPLIT_KEYS = frozenset({"split.no", "split.count", "split.tensors.count"})

KeyValueList = tuple[tuple[str, Value], ...]
Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What one file to be written holds; numbers: the places of its tensors in `Resolution.kept`."""

    path: Path
    kv: KeyValueList
    numbers: Numbers
    alignment: int


def shard_path(out: Path, number: int, count: int) -> Path:
    """`out` as shard `number` (from 0) of `count`; a `.gguf` or a shard number at the end of the name is replaced."""
    prefix = SHARD_SUFFIX.sub("", out.name.removesuffix(".gguf"))
    return out.with_name(f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be spread over files. shards: of the input where its split is kept (`keep_split`), else 0."""

    kept: Sequence[TensorOp]
    metadata: KeyValueList
    alignment: int
    shards: int = 0


def parts(contents: Contents, out: Path, split_max_bytes: int = 0) -> tuple[Part, ...]:
    """What each file holds that `contents` become when written to `out`.

    split_max_bytes: 0 for no limit, else at most so many bytes of tensor data in a shard (a tensor larger than that has
    a shard to itself); it takes precedence over the input's split.
    """
    kept = contents.kept
    plain = tuple((key, value) for key, value in contents.metadata if key not in SPLIT_KEYS)
    if split_max_bytes:
        sizes = [-(-op.nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT for op in kept]
        return _shards(contents.alignment, out, plain, groups_by_size(sizes, split_max_bytes), _gguf_split_keys)
    if not contents.shards:
        return (Part(out, plain, tuple(range(len(kept))), contents.alignment),)
    if contents.shards == 1:
        return (Part(shard_path(out, 0, 1), plain, tuple(range(len(kept))), contents.alignment),)
    return _shards(contents.alignment, out, plain, groups_of_input(kept, contents.shards), _keep_split_keys)


def groups_by_size(sizes: Sequence[int], limit: int) -> list[Numbers]:
    """Numbers of consecutive tensors whose sizes stay within `limit` bytes; no group but that of no tensors is empty.

    llama-gguf-split starts the next shard when the running sum would exceed the limit; the empty first shard that it
    writes when the very first tensor is larger than the limit is left out here.
    """
    groups: list[list[int]] = [[]]
    used = 0
    for number, size in enumerate(sizes):
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(number)
        used += size
    return [tuple(group) for group in groups]


def groups_of_input(kept: Sequence[TensorOp], shards: int) -> list[Numbers]:
    """Numbers of the tensors by the shard of the input that holds them.

    A shard whose tensors were all pruned is left out (llama-quantize crashes there), except the first, which holds the
    metadata.
    """
    groups: list[list[int]] = [[] for _ in range(shards)]
    for number, op in enumerate(kept):
        groups[op.tensor.info.shard].append(number)
    return [tuple(group) for place, group in enumerate(groups) if group or place == 0]


def _keep_split_keys(number: int, count: int, tensors: int) -> KeyValueList:
    """llama-quantize's order."""
    return (
        ("split.no", Value.of(ValueType.UINT16, number)),
        ("split.count", Value.of(ValueType.UINT16, count)),
        ("split.tensors.count", Value.of(ValueType.INT32, tensors)),
    )


def _gguf_split_keys(number: int, count: int, tensors: int) -> KeyValueList:
    """llama-gguf-split's order: it knows the number of shards only at the end."""
    return (
        ("split.no", Value.of(ValueType.UINT16, number)),
        ("split.tensors.count", Value.of(ValueType.INT32, tensors)),
        ("split.count", Value.of(ValueType.UINT16, count)),
    )


def _shards(
    alignment: int,
    out: Path,
    plain: KeyValueList,
    groups: Sequence[Numbers],
    keys: Callable[[int, int, int], KeyValueList],
) -> tuple[Part, ...]:
    """One file per group. Only the first carries `general.alignment`, so the others are laid out by the default."""
    tensors = sum(map(len, groups))
    found = []
    for number, group in enumerate(groups):
        kv = (plain if number == 0 else ()) + keys(number, len(groups), tensors)
        aligned = alignment if number == 0 else DEFAULT_ALIGNMENT
        found.append(Part(shard_path(out, number, len(groups)), kv, group, aligned))
    return tuple(found)
