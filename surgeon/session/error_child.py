"""The process that measures what types do to a tensor: reads one job from stdin, answers with a line for each figure.

A process of its own, because compiling kernels leaves hundreds of megabytes behind, and merely loading them a hundred.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.model import Model, Tensor, load_model
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX

if TYPE_CHECKING:
    from numpy.typing import NDArray


def main() -> None:
    """One JSON object in: model, imatrix (a path or null), tensors (name and types each), most (weights of a sample).

    Lines out: [tensor, type, error or null], or {"failed": why} at the first that cannot be read.
    """
    job: dict[str, Any] = json.load(sys.stdin)
    try:
        model = load_model(Path(job["model"]))
        imatrix = load_imatrix(job["imatrix"]) if job["imatrix"] is not None else None
        tensors = {tensor.name: tensor for tensor in model.tensors}
        for name, types in job["tensors"]:
            for kind, error in measured(model, tensors[name], types, weights_of(imatrix, tensors[name]), job["most"]):
                print(json.dumps([name, kind, error]), flush=True)
    except SurgeonError as error:
        print(json.dumps({"failed": str(error)}), flush=True)


def weights_of(imatrix: Imatrix | None, tensor: Tensor) -> NDArray[np.float32] | None:
    """float32[columns], of the first matrix; None where there are none."""
    if imatrix is None or tensor.name not in imatrix.entries:
        return None
    weights = imatrix.weights(tensor.name)
    return weights[: tensor.ne[0]] if len(weights) >= tensor.ne[0] else None


def measured(
    model: Model, tensor: Tensor, types: Sequence[str], weights: NDArray[np.float32] | None, most: int
) -> Iterator[tuple[str, float | None]]:
    """(type, relative error) for each of `types` that fits: sqrt(sum w (x - q)^2 / sum w x^2) over at most
    `most` weights of it.

    Before each there is (type, None): compiling a kernel for the first time takes seconds, and that should be seen.
    weights: float32[columns], the same for every type, also for those that do not use them, so that the errors can be
    compared. Raises SurgeonError when the tensor cannot be read or decoded.
    """
    rows = sample_rows(model, tensor, most)
    squares = np.square(rows, dtype=np.float64)
    energy = float(np.sum(squares * weights if weights is not None else squares))
    for name in types:
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
