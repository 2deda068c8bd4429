"""The process that measures what types do to a tensor: reads one job from stdin, answers with a line for each figure.

A process of its own, because compiling kernels leaves hundreds of megabytes behind, and merely loading them a hundred.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.model import Model, Tensor, load_model
from surgeon.moments.files import load_moments, load_weighing
from surgeon.moments.moments import Moments
from surgeon.moments.thresholds import FEWEST
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sums = NDArray[np.float64]

_UNDER_MOMENTS = 1 << 18  # weights of a sample that both encoders work on: a tenth of a second a type


def main() -> None:
    """One JSON object in: model, imatrix, moments (paths or null), shrink, rounds, groups (label, tensor names and
    types each), most (weights of a sample of one tensor).

    Lines out: [label, type, null] before the first of a group, then [label, type, [stock, feedback or null]] after each
    tensor, for all of the group so far; or {"failed": why} at the first that cannot be read.
    """
    job: dict[str, Any] = json.load(sys.stdin)
    try:
        bench = Bench.of(job)
        for label, names, types in job["groups"]:
            sums: dict[str, Sums] = {}
            for name in names:
                for kind, lost in bench.losses(name, types):
                    if lost is not None:
                        sums[kind] = sums[kind] + lost if kind in sums else lost
                    told = None if kind not in sums else relative(sums[kind], feedback=bench.moments is not None)
                    print(json.dumps([label, kind, told]), flush=True)
    except SurgeonError as error:
        print(json.dumps({"failed": str(error)}), flush=True)


def relative(sums: Sums, *, feedback: bool) -> tuple[float, float | None]:
    """Of [stock loss, feedback loss, energy] the square roots of loss over energy."""
    stock, fed, energy = (float(value) for value in sums)
    share = [math.sqrt(loss / energy) if energy > 0 else 0.0 for loss in (stock, fed)]
    return share[0], share[1] if feedback else None


@dataclass(frozen=True)
class Bench:
    """What errors are measured with. shrink: of second moments towards their diagonal; rounds: of better codes."""

    model: Model
    imatrix: Imatrix | None
    moments: Moments | None
    shrink: float
    rounds: int
    most: int

    @classmethod
    def of(cls, job: dict[str, Any]) -> Bench:
        """Raises SurgeonError for files that cannot be read."""
        moments = load_moments(job["moments"]) if job["moments"] is not None else None
        imatrix = None if moments is None else moments.as_imatrix
        if job["imatrix"] is not None:
            imatrix = load_weighing(job["imatrix"], judged=True)
        return cls(load_model(Path(job["model"])), imatrix, moments, job["shrink"], job["rounds"], job["most"])

    def losses(self, name: str, types: Sequence[str]) -> Iterator[tuple[str, Sums | None]]:
        """(type, [stock loss, feedback loss, energy]) of a tensor for each of `types` that fits.

        Before each there is (type, None): compiling a kernel for the first time takes seconds, and that should be seen.
        Under second moments H of its input a row's loss is e H e' and its energy w H w'; without, both are weighed by
        the importance matrix, the same for every type, also for those that do not use it. Raises SurgeonError when the
        tensor cannot be read or decoded.
        """
        tensor = next(one for one in self.model.tensors if one.name == name)
        weights = weights_of(self.imatrix, tensor)
        under = self._under(tensor)
        rows = sample_rows(self.model, tensor, self.most if under is None else min(self.most, _UNDER_MOMENTS))
        for kind in types:
            if rows.shape[1] % FORMATS[kind].block or kind not in surgeon_kernels.quantizable:
                continue
            if kind in REQUIRES_IMATRIX and weights is None:
                continue
            yield kind, None
            try:
                yield kind, _weighed(rows, kind, weights) if under is None else under.losses(rows, kind, weights)
            except ValueError as reason:
                raise SurgeonError(f"{name}: {reason}") from None

    def _under(self, tensor: Tensor) -> Under | None:
        one = None if self.moments is None else self.moments.of(tensor.name)
        if self.moments is None or one is None or one.columns != tensor.ne[0] or one.tokens[0].sum() == 0:
            return None
        if self.moments.ratios[one.name][0] < FEWEST:
            return None
        return Under(self.moments.blocks(one), self.shrink, self.rounds)


class Under:
    """Losses under the second moments `blocks`, square blocks along the diagonal."""

    def __init__(self, blocks: list[NDArray[np.float32]], shrink: float, rounds: int) -> None:
        self._blocks, self._rounds = blocks, rounds
        self._factor = surgeon_kernels.factor(blocks, shrink=shrink)

    def losses(self, rows: NDArray[np.float32], kind: str, weights: NDArray[np.float32] | None) -> Sums:
        """[stock loss, feedback loss, energy]; for a type without feedback the second is the first."""
        diagonal = self._factor.diagonal if weights is None else weights
        stock = fed = self._lost(rows, surgeon_kernels.quantize(rows, kind, diagonal), kind)
        if kind in surgeon_kernels.feedback_types:
            encoded = surgeon_kernels.quantize_with_feedback(
                rows, kind, self._factor, weights=weights, rounds=self._rounds
            )
            fed = self._lost(rows, encoded, kind)
        return np.array([stock, fed, self._energy(rows)])

    def _lost(self, rows: NDArray[np.float32], blocks: NDArray[np.uint8], kind: str) -> float:
        return float(surgeon_kernels.feedback_error(rows, blocks, kind, self._blocks).sum())

    def _energy(self, rows: NDArray[np.float32]) -> float:
        at, energy = 0, 0.0
        for block in self._blocks:
            part = rows[:, at : at + len(block)]
            energy += float(np.sum((part @ block) * part, dtype=np.float64))
            at += len(block)
        return energy


def _weighed(rows: NDArray[np.float32], kind: str, weights: NDArray[np.float32] | None) -> Sums:
    squares = np.square(rows, dtype=np.float64)
    energy = float(np.sum(squares * weights if weights is not None else squares))
    lost = float(np.sum(surgeon_kernels.quantization_error(rows, kind, weights).weighted))
    return np.array([lost, lost, energy])


def weights_of(imatrix: Imatrix | None, tensor: Tensor) -> NDArray[np.float32] | None:
    """float32[columns], of the first matrix; None where there are none."""
    if imatrix is None or tensor.name not in imatrix.entries:
        return None
    weights = imatrix.weights(tensor.name)
    return weights[: tensor.ne[0]] if len(weights) >= tensor.ne[0] else None


def sample_rows(model: Model, tensor: Tensor, most: int) -> NDArray[np.float32]:
    """float32[rows, columns]: up to `most` weights, rows evenly spread over the first matrix."""
    if tensor.type_name not in surgeon_kernels.dequantizable:
        raise SurgeonError(f"{tensor.name}: {tensor.type_name} cannot be decoded, so its error cannot be measured")
    columns = tensor.ne[0]
    row_bytes = FORMATS[tensor.type_name].row_bytes(columns)
    count = tensor.ne[1] if len(tensor.ne) > 1 else 1
    chosen = min(count, max(1, most // columns))
    blocks = np.empty((chosen, row_bytes), np.uint8)
    for place, row in enumerate(np.linspace(0, count - 1, chosen).astype(int)):
        model.file.read_into(tensor.info, int(row) * row_bytes, blocks[place])
    return surgeon_kernels.dequantize(blocks, tensor.type_name)


if __name__ == "__main__":
    main()
