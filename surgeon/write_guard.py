"""The gate that every path this program writes must pass, so that no file of the user's is ever destroyed.

A path may be written when it is not an input of this run (by whatever link or alias), no other output of it, and when
what lies there is of the same kind and the user has agreed to replace it. Asked before the work starts, and again by
those who rename (`whole_files`, `write.output_file`) at that moment.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from surgeon.errors import SurgeonError

_HEAD = 1 << 16  # bytes that are looked at
_MOST_KEYS = 64  # of a GGUF's metadata; general.type is among the first where there is one
_SCALAR_BYTES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)  # by GGUF value type; 8 is a string, 9 an array


class Kind(Enum):
    """What a file is, by its first bytes. UNKNOWN and EMPTY are only ever found, never written."""

    MODEL = "a GGUF model"
    IMATRIX = "an importance matrix"
    MOMENTS = "a file of second moments"
    HEAL = "a heal file"
    LOGITS = "a file of saved log-probabilities"
    TEXT = "a text"
    UNKNOWN = "a file of an unknown kind"
    EMPTY = "an empty file"


# By general.type; what is none of these is guarded as a model.
_GGUF_KINDS = {b"imatrix": Kind.IMATRIX, b"moments": Kind.MOMENTS, b"heal": Kind.HEAL}


class WriteRefused(SurgeonError):  # noqa: N818 - nothing is wrong: the file that is there stays
    """A path that this run must not write: the path, what it is, what to do."""


@dataclass(frozen=True, slots=True)
class Permit:
    """What a run may do to a path. inputs: everything it reads; outputs: everything else it writes; replace: a file of
    the same kind that is there may go, for the user has agreed to that."""

    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    replace: bool = False


NEW = Permit()
REPLACE = Permit(replace=True)  # for files of our own, in folders of our own


def may_write(path: Path, kind: Kind, permit: Permit, ours: Container[int] = ()) -> Path:
    """The file that `path` stands for, all links followed: a rename onto it then replaces the file and not a link.

    ours: inodes that this very write has put there before. Raises WriteRefused.
    """
    target = Path(os.path.realpath(path))
    _refuse_place(path, target)
    refuse_alias(path, permit)
    if os.path.lexists(target) and os.lstat(target).st_ino not in ours:
        _refuse_other_kind(path, target, kind)
        if not permit.replace:
            raise WriteRefused(f"{path}: already exists; choose another name or pass --overwrite")
    return target


def refuse_alias(path: Path, permit: Permit) -> None:
    """Raises WriteRefused when `path` is an input or another output of this run, by whatever name."""
    for source in permit.inputs:
        if same_file(path, source):
            raise WriteRefused(f"{path}: is the input {source} itself; the input is never changed, choose another name")
    for other in permit.outputs:
        if same_file(path, other):
            raise WriteRefused(f"{path}: this run writes {other} there; give each output a name of its own")


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths name one file, by links, hard links, `..` or spelling; also where it is not there yet."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return os.path.realpath(first) == os.path.realpath(second)


def kind_of(path: Path) -> Kind:
    """What the file at `path` is. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Kind.EMPTY
    if head.startswith(b"GGUF"):
        return _GGUF_KINDS.get(_general_type(head), Kind.MODEL)
    if head.startswith(b"_logits_"):
        return Kind.LOGITS
    if _is_old_imatrix(head):
        return Kind.IMATRIX
    return Kind.UNKNOWN if b"\0" in head else Kind.TEXT


def _refuse_place(path: Path, target: Path) -> None:
    """Raises WriteRefused where no plain file can be: a missing folder, a folder, a device."""
    if not target.parent.is_dir():
        folder = target.parent
        if folder.exists():
            raise WriteRefused(f"{path}: {folder} is a file and not a folder; choose another name")
        raise WriteRefused(f"{path}: the folder {folder} does not exist; make it first (mkdir -p {folder})")
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "a device or pipe, not a plain file"
        raise WriteRefused(f"{path}: is {what}; give the name of a file")


def _refuse_other_kind(path: Path, target: Path, kind: Kind) -> None:
    try:
        found = kind_of(target)
    except OSError as error:
        raise WriteRefused(
            f"{path}: is there and cannot be read ({error.strerror}), so it is not replaced; choose another name"
        ) from None
    if found not in (kind, Kind.EMPTY):
        raise WriteRefused(
            f"{path}: is {found.value}, and {kind.value} never replaces one; choose another name, or remove it yourself"
        )


def _general_type(head: bytes) -> bytes:
    """The value of `general.type` of a GGUF that begins with `head`; empty where it is not among the first keys."""
    try:
        (count,) = struct.unpack_from("<Q", head, 16)
        at = 24
        for _ in range(min(count, _MOST_KEYS)):
            key, at = _string(head, at)
            (value_type,) = struct.unpack_from("<I", head, at)
            if key == b"general.type" and value_type == 8:
                return _string(head, at + 4)[0]
            at = _after_value(head, at + 4, value_type)
    except (struct.error, IndexError):
        pass  # it ends early, or is not a GGUF we know: then it is guarded as a model
    return b""


def _string(head: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", head, at)
    return head[at + 8 : at + 8 + length], at + 8 + length


def _after_value(head: bytes, at: int, value_type: int) -> int:
    if value_type == 8:
        return _string(head, at)[1]
    if value_type != 9:
        return at + _SCALAR_BYTES[value_type]
    element, count = struct.unpack_from("<IQ", head, at)
    at += 12
    if element not in (8, 9):
        return at + int(_SCALAR_BYTES[element] * count)
    for _ in range(count):  # ends with the head at the latest
        at = _after_value(head, at, element)
    return at


def _is_old_imatrix(head: bytes) -> bool:
    """Whether it begins as llama-imatrix's .dat: a number of entries, then a name, calls and a number of values."""
    try:
        entries, length = struct.unpack_from("<ii", head)
        if entries < 1 or not 1 <= length < 1024:
            return False
        name = head[8 : 8 + length]
        calls, values = struct.unpack_from("<ii", head, 8 + length)
    except struct.error:
        return False
    return name.isascii() and name.decode("ascii").isprintable() and calls >= 0 and values > 0
