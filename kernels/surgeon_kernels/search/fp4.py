"""The 4-bit floats (E2M1) of MXFP4 and NVFP4: sign, two bits of exponent, one of mantissa.

VALUES are doubled, so that all are whole numbers; the step that multiplies them is halved in turn. Code 8
is -0 by the standard, and 0 as in ggml here.
"""

from __future__ import annotations

import numpy as np

from ..compilation import helper
from ..dialect import F, Lanes
from ..lanes.arithmetic import absolute, int_splat, select

VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@helper
def nearest_codes(x: Lanes, step: float) -> Lanes:
    """Per lane the first code whose value * step is nearest to x (never 8: 0 comes first)."""
    size = absolute(x)
    code = int_splat(0)
    error = size
    for k in range(1, 8):
        trial = absolute(VALUES[k] * step - size)
        nearer = trial < error
        error = select(nearer, trial, error)
        code = select(nearer, int_splat(k), code)
    return select((x < F(0)) & (code > 0), code + 8, code)
