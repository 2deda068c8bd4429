"""What the sources of kernels call their types."""

from __future__ import annotations

from typing import Any

import numpy as np

F = np.float32
Array = Any  # a one-dimensional array of the dtype that the kernel's signature gives
Lanes = Any  # sixteen numbers, see lanes/arithmetic.py
