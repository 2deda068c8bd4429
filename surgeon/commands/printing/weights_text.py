"""The weights of one tensor as lines of text: spread, histogram, outliers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon import figures

if TYPE_CHECKING:
    from surgeon.measure.weight_figures import WeightFigures

_HEIGHT = 4


def weights_text(found: WeightFigures) -> list[str]:
    """At most 72 cells wide."""
    from surgeon.measure.weight_figures import OUTLIER

    whole = found.sampled == found.total
    part = "all" if whole else f"{found.sampled:,} of"
    share = 100 * found.outliers / found.sampled
    return [
        f"{found.name}  {found.type_name}, {part} {found.total:,} weights",
        f"min {found.lowest:.4g}  max {found.highest:.4g}  mean {found.mean:.3g}  std {found.deviation:.4g}",
        f"outliers, over {OUTLIER:g} std from the mean: {found.outliers:,} ({share:.2g}% of them)",
        "largest |w| in rows     " + _places(found.rows),
        "largest |w| in columns  " + _places(found.columns),
        "",
        *_histogram(found.counts),
        f"{found.lowest:<{len(found.counts) // 2}.4g}{found.highest:>{len(found.counts) - len(found.counts) // 2}.4g}",
        f"heights are logarithms; the highest is {max(found.counts):,} weights",
        *([] if whole else ["measured in whole rows, evenly spread over the tensor"]),
    ]


def _places(places: tuple[tuple[int, float], ...]) -> str:
    return "  ".join(f"{number} ({size:.4g})" for number, size in places)


def _histogram(counts: tuple[int, ...]) -> list[str]:
    """Rows of blocks, the highest first; a bin with one weight is seen, an empty one is not."""
    top = math.log(max(counts) + 1)
    eighths = [max(1, round(math.log(count + 1) / top * _HEIGHT * 8)) if count else 0 for count in counts]
    return [
        "".join(" " if high <= 8 * level else figures.LEVELS[min(8, high - 8 * level) - 1] for high in eighths).rstrip()
        for level in range(_HEIGHT - 1, -1, -1)
    ]
