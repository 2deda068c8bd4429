"""What the weights of one tensor are like: spread, histogram, outliers and where the largest lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon_kernels.formats import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.model.model import Model, Tensor

OUTLIER = 6.0  # standard deviations from the mean (of norms not zero) beyond which a weight counts as an outlier
MOST_WEIGHTS = 1 << 24  # of one tensor that are decoded: 64 MB as float32
_BINS = 40
_NAMED = 3  # rows and columns that are named


@dataclass(frozen=True)
class WeightFigures:
    """Of the restored values of one tensor.

    sampled, total: weights measured, weights there are; deviation: standard deviation; outliers: weights with
    |w − mean| > OUTLIER · deviation; counts: weights in each of equally wide bins from lowest to highest; rows,
    columns: (number, largest |w| in it), the largest first; rows are numbered through all matrices (experts).
    """

    name: str
    type_name: str
    sampled: int
    total: int
    lowest: float
    highest: float
    mean: float
    deviation: float
    outliers: int
    counts: tuple[int, ...]
    rows: tuple[tuple[int, float], ...]
    columns: tuple[tuple[int, float], ...]


def weight_figures(model: Model, tensor: Tensor, most: int = MOST_WEIGHTS) -> WeightFigures:
    """Of all weights, or of whole rows evenly spread where there are more than `most`.

    Raises SurgeonError for a type that cannot be decoded and for values that are not finite.
    """
    numbers, values = _decoded(model, tensor, most)
    if not np.isfinite(values).all():
        raise SurgeonError(f"{tensor.name}: has values that are not finite (surgeon verify counts them)")
    sizes = np.abs(values)
    mean, deviation = float(np.mean(values, dtype=np.float64)), float(np.std(values, dtype=np.float64))
    lowest, highest = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, bins=_BINS, range=(lowest, highest))
    return WeightFigures(
        tensor.name,
        tensor.type_name,
        values.size,
        tensor.n_elements,
        lowest,
        highest,
        mean,
        deviation,
        int(np.count_nonzero(np.abs(values - np.float32(mean)) > OUTLIER * deviation)),
        tuple(counts.tolist()),
        _largest(numbers, sizes.max(axis=1)),
        _largest(np.arange(sizes.shape[1]), sizes.max(axis=0)),
    )


def _decoded(model: Model, tensor: Tensor, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Numbers of the rows taken, and their values float32[rows, columns]."""
    if tensor.type_name not in surgeon_kernels.dequantizable:
        raise SurgeonError(f"{tensor.name}: {tensor.type_name} cannot be decoded, so its weights cannot be measured")
    columns = tensor.ne[0]
    row_bytes = FORMATS[tensor.type_name].row_bytes(columns)
    count = tensor.n_elements // columns
    chosen = min(count, max(1, most // columns))
    numbers = np.linspace(0, count - 1, chosen).astype(np.int64)
    blocks = np.empty((chosen, row_bytes), np.uint8)
    if chosen == count:
        model.file.read_into(tensor.info, 0, blocks.reshape(-1))
    else:
        for place, number in enumerate(numbers.tolist()):
            model.file.read_into(tensor.info, number * row_bytes, blocks[place])
    return numbers, surgeon_kernels.dequantize(blocks, tensor.type_name)


def _largest(numbers: NDArray[np.int64], sizes: NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-sizes, kind="stable")[:_NAMED]
    return tuple((int(numbers[at]), float(sizes[at])) for at in order)
