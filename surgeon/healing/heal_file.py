"""A heal file: the healed tensors of one model without certain layers, under the model's own names.

    general.architecture, general.type = "heal"
    surgeon.heal.id                      hash of the tensors
    surgeon.heal.source, .source_id      the model's file name, and what identifies its content
    surgeon.heal.pruned_layers           int32[]
    surgeon.heal.texts, .text_sha256     names and hashes of the calibration texts
    surgeon.heal.chunks                  uint32[], of each text;  .n_ctx, .tokens: uint32
    surgeon.heal.names, .methods, .lambdas, .shrinks, .errors_before, .errors_after     one entry per branch looked at
    .notes                               of each branch, on its experts; empty, and absent in files of older versions
    surgeon.heal.held_out, .kld_plain, .kld_healed, .kld_plain_error, .kld_healed_error measured texts

A tensor is F32, or BF16 where the model's is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from surgeon.errors import SurgeonError
from surgeon.gguf.file import ValueType
from surgeon.gguf.header import DEFAULT_ALIGNMENT
from surgeon.gguf.identity import open_identity, same_identity
from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value
from surgeon.layer_lists import spans
from surgeon.model.model import Model, Tensor, load_model
from surgeon.whole_files import written_whole
from surgeon.write_guard import NEW, Kind, Permit

TYPE = "heal"
_PREFIX = "surgeon.heal."


@dataclass(frozen=True)
class Refit:
    """One branch: what was done and what it came to. before, after, note: as in HealedMatrix."""

    name: str
    method: str
    penalty: float
    shrink: float
    before: float
    after: float
    note: str = ""


@dataclass(frozen=True)
class HeldOut:
    """KL divergence from the unpruned model on a text that was not fitted: of the plain prune and of the healed one.

    plain_error, healed_error: their standard errors.
    """

    text: str
    plain: float
    healed: float
    plain_error: float = 0.0
    healed_error: float = 0.0


@dataclass(frozen=True)
class Origin:
    """Where a heal comes from. chunks: of each text; source_id: as `model_identity`."""

    source: str
    source_id: str
    pruned: frozenset[int]
    texts: tuple[str, ...] = ()
    text_sha256: tuple[str, ...] = ()
    chunks: tuple[int, ...] = ()
    n_ctx: int = 0
    tokens: int = 0
    refits: tuple[Refit, ...] = ()
    held_out: tuple[HeldOut, ...] = ()

    @property
    def worse(self) -> tuple[HeldOut, ...]:
        """The held-out texts on which the healed model is worse than the plain prune."""
        return tuple(one for one in self.held_out if one.healed > one.plain)

    def summary(self) -> str:
        """`2 texts, 120 chunks, 61,440 tokens`."""
        count = len(self.texts)
        return f"{count} text{'s' if count != 1 else ''}, {sum(self.chunks)} chunks, {self.tokens:,} tokens"


@dataclass(frozen=True, eq=False)
class Heal:
    """An open heal file. tensors: by name, those of the model it was made from."""

    path: Path
    model: Model
    id: str
    origin: Origin
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def misfit(self, model: Model, pruned: frozenset[int]) -> str | None:
        """Why this heal is not for this model without these layers, as one sentence; None where it is."""
        if not same_identity(self.origin.source_id, open_identity(model.file)):
            return f"{self.path}: was made for another model ({self.origin.source}); heal this one with surgeon heal"
        if self.origin.pruned != pruned:
            now = f"layers {spans(pruned)}" if pruned else "nothing"
            return (
                f"{self.path}: was made for pruning layers {spans(self.origin.pruned)}, the plan prunes {now}; "
                "prune the same layers or heal again"
            )
        return None


def load_heal(path: str | os.PathLike[str]) -> Heal:
    """Open a heal file; raises SurgeonError where it is none. A file that has not changed is opened once."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise SurgeonError(f"{path}: cannot be read: {error.strerror}") from None
    return _opened(os.fspath(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(8)
def _opened(path: str, *_version: int) -> Heal:
    """The screen resolves the plan on every key."""
    model = load_model(path)
    kind = model.file.kv.get("general.type")
    if kind is None or kind.decode() != TYPE:
        raise SurgeonError(f"{path}: not a heal file; make one with surgeon heal")
    try:
        origin, number = _origin(model), str(model.file.kv[f"{_PREFIX}id"].decode())
    except (KeyError, TypeError, ValueError) as error:
        raise SurgeonError(f"{path}: a damaged heal file ({error}); make it again with surgeon heal") from None
    return Heal(Path(path), model, number, origin, {tensor.name: tensor for tensor in model.tensors})


def is_heal_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a GGUF (then --heal takes it as it is) and not a text. Raises SurgeonError."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise SurgeonError(f"{path}: cannot be read: {error.strerror}") from None


# --- metadata


def _origin(model: Model) -> Origin:
    def get(key: str) -> Any:
        return model.file.kv[_PREFIX + key].decode()

    keys = ["names", "methods", "lambdas", "shrinks", "errors_before", "errors_after"]
    keys += ["notes"] if f"{_PREFIX}notes" in model.file.kv else []
    rows = zip(*(get(key) for key in keys), strict=True)
    measures = ("held_out", "kld_plain", "kld_healed", "kld_plain_error", "kld_healed_error")
    measured = zip(*map(get, measures), strict=True)
    return Origin(
        str(get("source")), str(get("source_id")), frozenset(get("pruned_layers")), tuple(get("texts")),
        tuple(get("text_sha256")), tuple(get("chunks")), int(get("n_ctx")), int(get("tokens")),
        tuple(Refit(*row) for row in rows), tuple(HeldOut(*row) for row in measured),
    )  # fmt: skip


def _metadata(architecture: str, number: str, origin: Origin) -> list[tuple[str, Value]]:
    strings, floats = ValueType.STRING, ValueType.FLOAT32
    refits, measured = origin.refits, origin.held_out
    pairs = {
        "id": Value.of(strings, number),
        "source": Value.of(strings, origin.source),
        "source_id": Value.of(strings, origin.source_id),
        "pruned_layers": Value.array(ValueType.INT32, sorted(origin.pruned)),
        "texts": Value.array(strings, origin.texts),
        "text_sha256": Value.array(strings, origin.text_sha256),
        "chunks": Value.array(ValueType.UINT32, origin.chunks),
        "n_ctx": Value.of(ValueType.UINT32, origin.n_ctx),
        "tokens": Value.of(ValueType.UINT32, origin.tokens),
        "names": Value.array(strings, [one.name for one in refits]),
        "methods": Value.array(strings, [one.method for one in refits]),
        "lambdas": Value.array(floats, [one.penalty for one in refits]),
        "shrinks": Value.array(floats, [one.shrink for one in refits]),
        "errors_before": Value.array(floats, [one.before for one in refits]),
        "errors_after": Value.array(floats, [one.after for one in refits]),
        "notes": Value.array(strings, [one.note for one in refits]),
        "held_out": Value.array(strings, [one.text for one in measured]),
        "kld_plain": Value.array(floats, [one.plain for one in measured]),
        "kld_healed": Value.array(floats, [one.healed for one in measured]),
        "kld_plain_error": Value.array(floats, [one.plain_error for one in measured]),
        "kld_healed_error": Value.array(floats, [one.healed_error for one in measured]),
    }
    head = [("general.architecture", Value.of(strings, architecture)), ("general.type", Value.of(strings, TYPE))]
    return head + [(_PREFIX + key, value) for key, value in pairs.items()]


# --- writing


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written. data: makes its bytes in parts, which are not all to be in memory together."""

    entry: Entry
    data: Callable[[], Iterable[bytes]]


def save_heal(path: Path, architecture: str, origin: Origin, tensors: Sequence[NewTensor], permit: Permit = NEW) -> str:
    """Write a heal file whole or not at all; returns its id. Raises SurgeonError."""
    digest = hashlib.sha256(f"{origin.source_id} {sorted(origin.pruned)}".encode())
    for tensor in tensors:
        digest.update(tensor.entry.name.encode())
        for part in tensor.data():
            digest.update(part)
    number = digest.hexdigest()
    layout = header(_metadata(architecture, number, origin), [tensor.entry for tensor in tensors], DEFAULT_ALIGNMENT)
    with written_whole(path, Kind.HEAL, permit) as temporary, temporary.open("wb") as file:
        file.write(layout.data)
        for tensor, offset in zip(tensors, layout.offsets, strict=True):
            file.write(b"\0" * (offset - file.tell()))
            file.writelines(tensor.data())
        file.write(b"\0" * (layout.total_bytes - file.tell()))
    return number
