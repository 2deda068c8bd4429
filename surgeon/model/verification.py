"""Checks of a GGUF beyond what opening it checks: would llama.cpp load it, are its numbers numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import surgeon_kernels
from surgeon.gguf.file import GGUFFile, TensorInfo
from surgeon.gguf.header import Shard
from surgeon.gguf.layout import padded
from surgeon.model.kinds import NAMES, NO_MODELS, kind
from surgeon.model.layer_keys import wrong_length
from surgeon.model.loading import key_refusals, special_token_notes, tensor_refusals, vocabulary_rows
from surgeon.model.model import Model
from surgeon.problems import Problem
from surgeon_kernels.formats import Format

SLAB_BYTES = 8 << 20
GGML_NAME_BYTES, GGML_DIMS = 63, 4
MOST_TOLD = 20  # refusals of one kind
_REMOVED = dict.fromkeys((4, 5, 31, 32, 33, 36, 37, 38), "ggml no longer has it; convert the model again")
INTEGERS = frozenset({"I8", "I16", "I32", "I64"})  # every bit pattern is a number


@dataclass(frozen=True, slots=True)
class Checked:
    """How far the check of the numbers is. tensor: the name of the current one; both sizes in bytes."""

    tensor: str
    done_bytes: int
    total_bytes: int


def structure_problems(model: Model) -> list[Problem]:
    """What llama.cpp would refuse although the file can be read, worst first."""
    problems = [problem for shard in model.file.shards for problem in _layout_problems(shard)]
    if kind(model.file) != "imatrix":
        problems += _model_problems(model)
    problems += _beyond_ggml(model)
    unknown = [tensor for tensor in model.tensors if tensor.info.format is None]
    if unknown:
        what = _REMOVED.get(unknown[0].info.type_id, "llama.cpp does not know it, or only a fork of it does")
        problems.append(
            Problem(
                "error",
                f"{len(unknown)} tensor{'s are' if len(unknown) > 1 else ' is'} of an unknown type, "
                f"first {unknown[0].name} ({unknown[0].type_name}: "
                f"{what}); their numbers are not checked",
            )
        )
    return problems


def _beyond_ggml(model: Model) -> list[Problem]:
    """Names and shapes that can be read and copied here, but not by llama.cpp."""
    found = []
    long = [tensor.name for tensor in model.tensors if len(tensor.name.encode()) > GGML_NAME_BYTES]
    deep = [tensor for tensor in model.tensors if len(tensor.ne) > GGML_DIMS]
    if long:
        text = f"{long[0]} has a name of {len(long[0].encode())} bytes"
        found.append(Problem("error", f"{text}; llama.cpp reads names up to {GGML_NAME_BYTES} ({len(long)} such)"))
    if deep:
        text = f"{deep[0].name} has {len(deep[0].ne)} dimensions"
        remedy = f"llama.cpp reads {GGML_DIMS}; programs for images keep such tensors beside the file"
        found.append(Problem("error", f"{text}; {remedy} ({len(deep)} such)"))
    return found


def _layout_problems(shard: Shard) -> list[Problem]:
    expected = shard.data_start
    for info in shard.tensors:
        if info.offset != expected:
            return [
                Problem(
                    "error",
                    f"{shard.path.name}: {info.name} is at byte {info.offset}; llama.cpp loads only files without gaps "
                    f"and expects it at {expected}; write the model again with `surgeon quantize … COPY`",
                )
            ]
        expected = padded(expected + info.nbytes, shard.alignment)
    return []


def _model_problems(model: Model) -> list[Problem]:
    found = kind(model.file)
    if found in NO_MODELS:
        return [Problem("note", f"{NAMES[found]}; only its layout and its numbers are checked")]
    if not model.architecture:
        return [Problem("error", "general.architecture is missing; llama.cpp needs it to load the model")]
    layers = frozenset(layer.index for layer in model.layers)
    texts = key_refusals(model.file.kv, layers, vocabulary_rows(model))
    declared = model.hparam("block_count")
    refusal = wrong_length(model, declared) if isinstance(declared, int) else None
    texts += [refusal] if refusal else []
    if found == "model" and model.layers:
        texts += tensor_refusals(model)
    if len(texts) > MOST_TOLD:
        texts = [*texts[:MOST_TOLD], f"and {len(texts) - MOST_TOLD} more of this kind"]
    notes = [Problem("warning", text) for text in special_token_notes(model.file.kv)]
    return [Problem("error", text) for text in texts] + notes


def check_numbers(file: GGUFFile) -> Iterator[Checked | Problem]:
    """Look at every value as llama-quantize validates its input: NaN and infinity in values or block scales.

    Yields its progress after every few MiB, and a Problem for each tensor with an invalid value. Raises GGUFError when
    the file cannot be read. Memory: one slab of SLAB_BYTES.
    """
    total = sum(info.nbytes for info in file.tensors)
    slab = np.empty(SLAB_BYTES, np.uint8)
    done = 0
    for info in file.tensors:
        yield Checked(info.name, done, total)
        known = info.format
        if info.n_rows > 1 and _is_all_zero(file, info, slab):
            text = f"{info.name} holds nothing but zeros: an unfinished download, or emptied on purpose"
            yield Problem("warning", text)
        if known and known.name not in INTEGERS:
            for checked in _tensor_rows(file, info, known, slab):
                if isinstance(checked, Problem):
                    yield checked
                    break
                yield Checked(info.name, done + checked, total)
        done += info.nbytes
    if file.tensors:
        yield Checked(file.tensors[-1].name, total, total)


def _is_all_zero(file: GGUFFile, info: TensorInfo, slab: np.ndarray) -> bool:
    """Reads no further than to the first byte that is not zero, 64 KiB at a time."""
    step = 1 << 16
    for start in range(0, info.nbytes, step):
        piece = slab[: min(step, info.nbytes - start)]
        file.read_into(info, start, piece)
        if piece.any():
            return False
    return True


def _tensor_rows(file: GGUFFile, info: TensorInfo, known: Format, slab: np.ndarray) -> Iterator[int | Problem]:
    """Bytes checked so far, after each slab; ends with a Problem at the first invalid row."""
    row_bytes = known.row_bytes(info.ne[0])
    unit = row_bytes if row_bytes <= len(slab) else known.block_bytes  # a row longer than the slab goes block by block
    step = len(slab) // unit * unit
    for start in range(0, info.nbytes, step):
        piece = slab[: min(step, info.nbytes - start)]
        file.read_into(info, start, piece)
        invalid = surgeon_kernels.first_invalid(piece.reshape(-1, unit), known.name)
        if invalid >= 0:
            row = (start + invalid * unit) // row_bytes
            what = "scale" if known.is_quantized else "value"
            yield Problem("error", f"{info.name} ({known.name}) has a {what} that is NaN or infinite in row {row}")
            return
        yield start + len(piece)
