"""What would come of a type or a file type: sizes for the pickers, and the measured error of a tensor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.model.model import Tensor
from surgeon.plan import plan as plans
from surgeon.plan.file_types import FILE_TYPES
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.tensor_op import TensorOp
from surgeon.session.child_process import lines_of
from surgeon.session.session import Session
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX

# What llama-quantize can be asked for, most bits first; the others are for activations or integers.
TYPES: tuple[str, ...] = tuple(
    sorted(
        (name for name in FORMATS if name not in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")),
        key=lambda name: -FORMATS[name].bpw,
    )
)


@dataclass(frozen=True)
class Candidate:
    """What choosing `name` would give.

    nbytes: of the tensors asked about; note: why it cannot be chosen, or ''; kld: what they add to the predicted KL
    divergence, None where it is not known.
    """

    name: str
    bpw: float
    nbytes: int
    total: int
    total_bpw: float
    note: str = ""
    actual: str = ""
    kld: float | None = None


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
            kld=_predicted(session, ops),
        )


def _predicted(session: Session, ops: Sequence[TensorOp]) -> float | None:
    costs = session.costs
    if costs is None:
        return None
    found = costs.predicted({op.source: op.to_type for op in ops if op.action == "convert"})
    return None if found is None else found.kld


def _needs(session: Session, name: str, tensors: Sequence[Tensor]) -> str:
    if name not in REQUIRES_IMATRIX:
        return ""
    if session.imatrix is None:
        return "needs an imatrix"
    bare = [tensor.name for tensor in tensors if not session.covered(tensor.name)]
    return f"no imatrix entry: {bare[0]}{f' + {len(bare) - 1}' if len(bare) > 1 else ''}" if bare else ""


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
            kld=_predicted_of(session, resolution),
        )


def _predicted_of(session: Session, resolution: Resolution) -> float | None:
    found = None if session.costs is None else session.costs.predicted_of(resolution)
    return None if found is None else found.kld


SAMPLE_WEIGHTS = 1 << 20  # of one tensor: errors of rows scatter little, and a million take a fraction of a second
MAP_WEIGHTS = 1 << 17  # of each of many

SHRINK = 0.5  # of second moments, where the plan does not say; a write chooses it for each input

Wanted = Sequence[tuple[str, Sequence[str]]]
"""Tensor names, and the types to be measured of each."""


class Lost(NamedTuple):
    """Relative error of the output; feedback: with the feedback encoder, None without second moments."""

    stock: float
    feedback: float | None = None


def measured_errors(
    session: Session, wanted: Wanted, cancelled: threading.Event, most: int = SAMPLE_WEIGHTS
) -> Iterator[tuple[str, str, float | None]]:
    """(tensor, type, relative error) of the stock encoder, weighted by the importance matrix where it has the tensor.

    Before each there is (tensor, type, None). Raises as `measured_losses`.
    """
    groups = [(name, [name], types) for name, types in wanted]
    for name, kind, lost in _measured(session, groups, cancelled, most, None):
        yield name, kind, None if lost is None else lost.stock


def measured_losses(
    session: Session, names: Sequence[str], types: Sequence[str], cancelled: threading.Event
) -> Iterator[tuple[str, Lost | None]]:
    """(type, error) of all these tensors together, better after each of them; (type, None) before the first.

    With second moments in the plan errors are those of the output under them, of both encoders. Measured in a process
    of its own (`error_child`) on a sample of each tensor. Raises SurgeonError when one cannot be read or decoded.
    """
    moments = None if session.moments is None else str(session.moments.path.absolute())
    for _, kind, lost in _measured(session, [("", names, types)], cancelled, SAMPLE_WEIGHTS // len(names), moments):
        yield kind, lost


def _measured(
    session: Session,
    groups: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    cancelled: threading.Event,
    most: int,
    moments: str | None,
) -> Iterator[tuple[str, str, Lost | None]]:
    plan = session.plan
    job = {
        "model": str(session.model.file.path.absolute()),
        "imatrix": None if session.imatrix is None else str(session.imatrix.path.absolute()),
        "moments": moments,
        "shrink": SHRINK if plan.shrink is None else plan.shrink,
        "rounds": plan.feedback_rounds,
        "groups": [[label, list(names), list(types)] for label, names, types in groups],
        "most": most,
    }
    for line in lines_of(("-m", "surgeon.session.error_child"), json.dumps(job), cancelled):
        item = json.loads(line)
        if isinstance(item, dict):
            raise SurgeonError(item["failed"])
        label, kind, lost = item
        yield label, kind, None if lost is None else Lost(*lost)
