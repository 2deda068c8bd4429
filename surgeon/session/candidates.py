"""What would come of a type or a file type: sizes for the pickers, and the measured error of a tensor. Pure."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.model.model import Tensor
from surgeon.plan import plan as plans
from surgeon.plan.file_types import FILE_TYPES
from surgeon.session.session import Session
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What llama-quantize can be asked for, most bits first; the others are for activations or integers.
TYPES: tuple[str, ...] = tuple(
    sorted(
        (name for name in FORMATS if name not in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")),
        key=lambda name: -FORMATS[name].bpw,
    )
)
SAMPLE_WEIGHTS = (
    1 << 20
)  # of a tensor; errors of rows scatter little, and a million weights take a fraction of a second


@dataclass(frozen=True)
class Candidate:
    """What choosing `name` would give. nbytes: of the tensors asked about; note: why it cannot be chosen, or ''."""

    name: str
    bpw: float
    nbytes: int
    total: int
    total_bpw: float
    note: str = ""
    actual: str = ""


def missing_kernel(name: str) -> str:
    return "" if name in surgeon_kernels.quantizable else "no kernel yet"


def type_candidates(session: Session, tensors: Sequence[Tensor]) -> Iterator[Candidate]:
    """Every type for `tensors`, with what the shape fallback makes of it."""
    names = [tensor.name for tensor in tensors]
    wanted = frozenset(names)
    for name in TYPES:
        resolution = session.preview(plans.with_types(session.plan, names, name))
        ops = [op for op in resolution.kept if op.source in wanted]
        became = sorted({op.to_type for op in ops} - {name})
        yield Candidate(
            name=name,
            bpw=FORMATS[name].bpw,
            nbytes=sum(op.nbytes for op in ops),
            total=resolution.total_bytes,
            total_bpw=resolution.bpw,
            note=missing_kernel(name) or _needs(session, name, tensors),
            actual="/".join(became),
        )


def _needs(session: Session, name: str, tensors: Sequence[Tensor]) -> str:
    if name in REQUIRES_IMATRIX and not all(session.covered(tensor.name) for tensor in tensors):
        return "needs an imatrix"
    return ""


def base_candidates(session: Session) -> Iterator[Candidate]:
    """Every file type, as the present rules and marks would leave it."""
    for file_type in FILE_TYPES.values():
        resolution = session.preview(replace(session.plan, file_type=file_type.name))
        missing = sorted({op.to_type for op in resolution.kept if op.action == "convert"} - surgeon_kernels.quantizable)
        yield Candidate(
            name=file_type.name,
            bpw=FORMATS[file_type.base].bpw if file_type.base else 0.0,
            nbytes=resolution.total_bytes,
            total=resolution.total_bytes,
            total_bpw=resolution.bpw,
            note=f"no kernel yet: {' '.join(missing)}" if missing else "",
        )


def measured_errors(
    session: Session, tensor: Tensor, types: Sequence[str], cancelled: threading.Event
) -> Iterator[tuple[str, float | None]]:
    """(type, relative error) for each of `types` that fits: sqrt(sum w (x - q)^2 / sum w x^2) over a sample of rows.

    Before each there is (type, None): compiling a kernel for the first time takes seconds, and that should be seen.
    w is the importance matrix where there is one. Raises SurgeonError when the tensor cannot be read or decoded.
    """
    import numpy as np

    rows = sample_rows(session, tensor)
    weights = _weights(session, tensor)
    squares = np.square(rows, dtype=np.float64)
    energy = float(np.sum(squares * weights if weights is not None else squares))
    for name in types:
        if cancelled.is_set():
            return
        if rows.shape[1] % FORMATS[name].block or name not in surgeon_kernels.quantizable:
            continue
        if name in REQUIRES_IMATRIX and weights is None:
            continue
        yield name, None
        try:
            error = surgeon_kernels.quantization_error(rows, name, weights)
        except ValueError as reason:
            raise SurgeonError(f"{tensor.name}: {reason}") from None
        yield name, math.sqrt(float(np.sum(error.weighted)) / energy) if energy else 0.0


def sample_rows(session: Session, tensor: Tensor) -> NDArray[np.float32]:
    """float32[rows, columns]: up to SAMPLE_WEIGHTS weights, rows evenly spread over the first matrix."""
    import numpy as np

    if tensor.type_name not in surgeon_kernels.dequantizable:
        raise SurgeonError(f"{tensor.name}: {tensor.type_name} cannot be decoded, so its error cannot be measured")
    columns = tensor.ne[0]
    row_bytes = FORMATS[tensor.type_name].row_bytes(columns)
    count = tensor.ne[1] if len(tensor.ne) > 1 else 1
    chosen = min(count, max(1, SAMPLE_WEIGHTS // columns))
    blocks = np.empty((chosen, row_bytes), np.uint8)
    for place, row in enumerate(np.linspace(0, count - 1, chosen).astype(int)):
        session.model.file.read_into(tensor.info, int(row) * row_bytes, blocks[place])
    return surgeon_kernels.dequantize(blocks, tensor.type_name)


def _weights(session: Session, tensor: Tensor) -> NDArray[np.float32] | None:
    """The same weights for every type, also for those that do not use them, so that the errors can be compared."""
    if session.imatrix is None or not session.covered(tensor.name):
        return None
    weights = session.imatrix.weights(tensor.name)
    return weights[: tensor.ne[0]] if len(weights) >= tensor.ne[0] else None
