"""The file of second moments: a GGUF with three tensors per input, matrix after matrix, half after half.

    INPUT.sum2    F32 [columns, halves, matrices]    Σ x²
    INPUT.corr    F16 [pairs, halves, matrices]      correlations, the triangle row by row (`triangle`)
    INPUT.tokens  I64 [halves, matrices]             rows of x

INPUT is the name of the first weight that multiplies it; `moments.weights` and `moments.inputs`, side by side, give
every weight's input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from surgeon.gguf.file import GGUFFile, Value, ValueType, metadata_of, open_gguf
from surgeon.gguf.header import DEFAULT_ALIGNMENT
from surgeon.gguf.layout import Entry, Header, header
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix
from surgeon.moments.moments import CORRELATIONS, SUMS, TOKENS, Head, Input, Moments, MomentsError
from surgeon.moments.triangle import Float32, pack, packed_length
from surgeon.whole_files import written_whole
from surgeon.write_guard import NEW, Permit
from surgeon.write_guard import Kind as WriteKind
from surgeon_kernels.formats import FORMATS

KIND, VERSION = "moments", 1
_F32, _F16, _I64 = (FORMATS[name].number for name in ("F32", "F16", "I64"))
_NO_DIGEST = "0" * 64
_AGAIN = "collect it again with surgeon imatrix --moments"
_KEYS = {
    "moments.version": ValueType.UINT32,
    "moments.block": ValueType.UINT32,
    "moments.halves": ValueType.UINT32,
    "moments.model": ValueType.STRING,
    "moments.model_name": ValueType.STRING,
    "moments.chunk_count": ValueType.UINT32,
    "moments.chunk_size": ValueType.UINT32,
    "moments.digest": ValueType.STRING,
}
_LISTS = ("moments.weights", "moments.inputs", "moments.datasets")


class Source(Protocol):
    """Where sums come from: such a file, or what the engine has just collected."""

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    @property
    def users(self) -> Mapping[str, str]: ...

    def sums(self, one: Input, matrix: int, half: int) -> list[Float32]:
        """Σ x xᵀ, its blocks along the diagonal; only their upper triangles need be filled."""


def is_moments(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a GGUF of second moments; one that cannot be read is not. Raises GGUFError for damage."""
    try:
        with Path(path).open("rb") as file:
            if file.read(4) != b"GGUF":
                return False
    except (OSError, ValueError):  # whoever reads it says what is wrong with it
        return False
    kind = metadata_of(path).get("general.type")
    return kind is not None and kind.type is ValueType.STRING and kind.decode() == KIND


def load_weighing(path: str | os.PathLike[str], *, judged: bool = False) -> Imatrix:
    """An importance matrix; of a file of second moments, the one that its diagonals are. Raises as `load_imatrix`."""
    return load_moments(path).as_imatrix if is_moments(path) else load_imatrix(path, judged=judged)


def beside(imatrix: Path) -> Path:
    """Where the second moments that belong to an importance matrix are looked for, and put."""
    stem = imatrix.name.removesuffix(".gguf").removesuffix(".dat")
    usual = imatrix.with_name(f"{stem}.moments.gguf")
    short = imatrix.with_name(f"{stem.removesuffix('.imatrix')}.moments.gguf")
    return short if short.exists() and not usual.exists() else usual


def load_moments(path: str | os.PathLike[str]) -> Moments:
    """Open a file of second moments; the matrices stay on the disk. Raises MomentsError or GGUFError."""
    gguf = open_gguf(path)
    try:
        return _moments(Path(path), gguf)
    except BaseException:
        gguf.close()
        raise


def _moments(path: Path, gguf: GGUFFile) -> Moments:
    kind = gguf.kv.get("general.type")
    if kind is None or kind.decode() != KIND:
        raise MomentsError(f"{path}: not a file of second moments; name what surgeon imatrix --moments wrote")
    values = {key: _value(path, gguf, key, kind) for key, kind in _KEYS.items()}
    if values["moments.version"] != VERSION:
        raise MomentsError(f"{path}: has version {values['moments.version']}; this surgeon reads version {VERSION}")
    weights, inputs, datasets = (_strings(path, gguf, key) for key in _LISTS)
    if len(weights) != len(inputs):
        raise MomentsError(f"{path}: has {len(weights)} weights and {len(inputs)} inputs; {_AGAIN}")
    head = Head(
        values["moments.block"], values["moments.halves"], values["moments.model"], values["moments.model_name"],
        tuple(datasets), values["moments.chunk_count"], values["moments.chunk_size"],
    )  # fmt: skip
    if head.halves not in (1, 2):
        raise MomentsError(f"{path}: has {head.halves} halves; {_AGAIN}")
    found = {name: _input(path, gguf, head, name) for name in dict.fromkeys(inputs)}
    users = dict(zip(weights, inputs, strict=True))
    return Moments(path, head, found, users, values["moments.digest"], gguf)


def _value(path: Path, gguf: GGUFFile, key: str, kind: ValueType) -> Any:
    value = gguf.kv.get(key)
    if value is None or value.type is not kind:
        raise MomentsError(f"{path}: {key} is missing or not {kind.name.lower()}; {_AGAIN}")
    return value.decode()


def _strings(path: Path, gguf: GGUFFile, key: str) -> list[str]:
    value = gguf.kv.get(key)
    if value is None or value.element_type is not ValueType.STRING:
        raise MomentsError(f"{path}: {key} is missing or not a list of names; {_AGAIN}")
    found: list[str] = value.decode()
    return found


def _input(path: Path, gguf: GGUFFile, head: Head, name: str) -> Input:
    infos = {info.name: info for info in gguf.tensors}
    try:
        sums, corr, counts = (infos[name + suffix] for suffix in (SUMS, CORRELATIONS, TOKENS))
    except KeyError as error:
        raise MomentsError(f"{path}: the tensor {error.args[0]!r} is missing; {_AGAIN}") from None
    columns = sums.ne[0]
    matrices = sums.n_elements // (columns * head.halves) if columns else 0
    expected = (
        (_F32, _F16, _I64),
        (
            columns * head.halves * matrices,
            packed_length(columns, head.block) * head.halves * matrices,
            head.halves * matrices,
        ),
    )
    three = (sums, corr, counts)
    if matrices < 1 or (tuple(t.type_id for t in three), tuple(t.n_elements for t in three)) != expected:
        raise MomentsError(f"{path}: the tensors of {name} do not fit together; {_AGAIN}")
    tokens = np.empty(counts.n_elements, "<i8")
    gguf.read_into(counts, 0, tokens)
    if (tokens < 0).any():
        raise MomentsError(f"{path}: {name} has a negative number of tokens; {_AGAIN}")
    return Input(name, columns, matrices, tokens.astype(np.int64).reshape(matrices, head.halves))


class MomentsFile:
    """A file of second moments before it is written: the sum of all sources, input by input.

    path: what errors name. Raises MomentsError where sources do not belong together.
    """

    def __init__(self, path: Path, head: Head, sources: Sequence[Source]) -> None:
        self._head, self._sources = head, sources
        self._inputs, self._users = _added(path, sources), _users(path, sources)
        self._entries = [entry for one in self._inputs for entry in _entries(one, head)]
        layout = self._header(_NO_DIGEST)
        self.nbytes = layout.total_bytes
        self._offsets = dict(zip([entry.name for entry in self._entries], layout.offsets, strict=True))
        self.matrices = sum(one.matrices for one in self._inputs)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Every byte but those between tensors, with its offset; the header last. Raises MomentsError."""
        for matrix in self.by_matrix():
            yield from matrix

    def by_matrix(self) -> Iterator[list[tuple[int, bytes]]]:
        """The same, one matrix of an input at a time."""
        digest = hashlib.sha256()
        for number, (one, matrix) in enumerate(self._order(), 1):
            pieces = [(self._offsets[one.name + TOKENS], one.tokens.astype("<i8").tobytes())] if matrix == 0 else []
            for half in range(self._head.halves):
                pieces += self._packed(one, matrix, half)
            for _, data in pieces:
                digest.update(data)
            yield [*pieces, (0, self._header(digest.hexdigest()).data)] if number == self.matrices else pieces
        if self.matrices == 0:
            yield [(0, self._header(digest.hexdigest()).data)]

    def _order(self) -> Iterator[tuple[Input, int]]:
        return ((one, matrix) for one in self._inputs for matrix in range(one.matrices))

    def _packed(self, one: Input, matrix: int, half: int) -> list[tuple[int, bytes]]:
        diagonal, correlations = pack(_sum(self._sources, one, matrix, half))
        place = matrix * self._head.halves + half
        sums_at, corr_at = self._offsets[one.name + SUMS], self._offsets[one.name + CORRELATIONS]
        return [
            (sums_at + place * diagonal.nbytes, diagonal.astype("<f4").tobytes()),
            (corr_at + place * correlations.nbytes, correlations.astype("<f2").tobytes()),
        ]

    def _header(self, digest: str) -> Header:
        return header(_metadata(self._head, self._users, digest), self._entries, DEFAULT_ALIGNMENT)


def write_moments(path: Path, head: Head, sources: Sequence[Source], permit: Permit = NEW) -> Iterator[tuple[int, int]]:
    """Write the sum of all sources; yields (matrices done, of all).

    The file has its name only when it is whole. Raises MomentsError where sources do not belong together, SurgeonError
    where it cannot be written.
    """
    planned = MomentsFile(path, head, sources)
    with written_whole(path, WriteKind.MOMENTS, permit) as temporary, temporary.open("r+b") as file:
        file.truncate(planned.nbytes)
        for done, pieces in enumerate(planned.by_matrix(), 1):
            for offset, data in pieces:
                file.seek(offset)
                file.write(data)
            yield done, max(planned.matrices, 1)


def _entries(one: Input, head: Head) -> list[Entry]:
    many = head.halves * one.matrices
    packed = packed_length(one.columns, head.block)
    return [
        Entry(one.name + SUMS, (one.columns, head.halves, one.matrices), _F32, 4 * one.columns * many),
        Entry(one.name + CORRELATIONS, (packed, head.halves, one.matrices), _F16, 2 * packed * many),
        Entry(one.name + TOKENS, (head.halves, one.matrices), _I64, 8 * many),
    ]


def _metadata(head: Head, users: Mapping[str, str], digest: str) -> list[tuple[str, Value]]:
    numbers = {
        "moments.version": VERSION, "moments.block": head.block, "moments.halves": head.halves,
        "moments.chunk_count": head.chunk_count, "moments.chunk_size": head.chunk_size,
    }  # fmt: skip
    texts = {
        "general.type": KIND, "moments.model": head.model, "moments.model_name": head.model_name,
        "moments.digest": digest,
    }  # fmt: skip
    lists = {"moments.datasets": head.datasets, "moments.weights": [*users], "moments.inputs": [*users.values()]}
    return [
        *((key, Value.of(ValueType.STRING, text)) for key, text in texts.items()),
        *((key, Value.of(ValueType.UINT32, number)) for key, number in numbers.items()),
        *((key, Value.array(ValueType.STRING, names)) for key, names in lists.items()),
    ]


def _added(path: Path, sources: Sequence[Source]) -> list[Input]:
    """The inputs of all sources with their tokens added up. Raises MomentsError where shapes differ."""
    found: dict[str, Input] = {}
    for source in sources:
        for name, one in source.inputs.items():
            before = found.get(name)
            if before is None:
                found[name] = one
                continue
            if (before.columns, before.matrices) != (one.columns, one.matrices):
                raise MomentsError(
                    f"{path}: {name} has {one.columns} columns in one file and {before.columns} in another; "
                    "add up second moments of one model only"
                )
            found[name] = Input(name, one.columns, one.matrices, before.tokens + one.tokens)
    return list(found.values())


def _users(path: Path, sources: Sequence[Source]) -> dict[str, str]:
    users: dict[str, str] = {}
    for source in sources:
        for weight, name in source.users.items():
            if users.setdefault(weight, name) != name:
                raise MomentsError(f"{path}: {weight} multiplies {name} in one file and {users[weight]} in another")
    return users


def _sum(sources: Sequence[Source], one: Input, matrix: int, half: int) -> list[Float32]:
    parts = [source.sums(source.inputs[one.name], matrix, half) for source in sources if one.name in source.inputs]
    total = parts[0]
    for part in parts[1:]:
        total = [into + more for into, more in zip(total, part, strict=True)]
    return total
