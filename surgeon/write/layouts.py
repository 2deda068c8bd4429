"""The files a resolved plan becomes: each one's header, and where the data of each tensor goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgeon.gguf.layout import Entry, Header, header
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.shards import KeyValueList, Numbers, Part
from surgeon.resolve.tensor_op import TensorOp
from surgeon_kernels.formats import FORMATS


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """One file to be written: its header and, for each tensor in it, where its data goes.

    kv: what the header holds; numbers: the place of each tensor in `Resolution.kept`, parallel to header.offsets.
    """

    path: Path
    kv: KeyValueList
    entries: tuple[Entry, ...]
    header: Header
    numbers: Numbers


def lay_out(resolution: Resolution, out: Path, split_max_bytes: int = 0) -> tuple[OutputLayout, ...]:
    """The files that `resolution` becomes when written to `out`; split_max_bytes: as in `shards.parts`."""
    return tuple(_layout(resolution, part) for part in resolution.parts(out, split_max_bytes))


def _layout(resolution: Resolution, part: Part) -> OutputLayout:
    entries = tuple(_entry(resolution.kept[number]) for number in part.numbers)
    return OutputLayout(part.path, part.kv, entries, header(part.kv, entries, part.alignment), part.numbers)


def _entry(op: TensorOp) -> Entry:
    type_id = op.read.info.type_id if op.action == "copy" else FORMATS[op.to_type].number
    return Entry(op.name, op.ne, type_id, op.nbytes)
