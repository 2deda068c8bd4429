"""The kernels as they are emitted for lesser processors than this one: the same bytes.

What is emitted differs with the processor (processor.py). On x86-64 a better one runs the code of a lesser one, so each
way is tried wherever it can be. The types are those that use everything that differs: masks and roundings, transposes,
both look-ups and the smallest two.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from golden_blocks import RECORD, key

import surgeon_kernels
from surgeon_kernels.lanes import processor

_TYPES = ("Q3_K", "IQ4_NL", "IQ2_S")
_AVX = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx"
_PROCESSORS = {  # name: (LLVM's name, its features, whether this processor has them)
    "SSE2": ("generic", "", platform.machine() in ("x86_64", "AMD64")),
    "AVX": ("sandybridge", _AVX, processor.AVX2 or processor.AVX512),
    "AVX2": ("haswell", f"{_AVX},+avx2,+fma,+f16c,+bmi,+bmi2", processor.AVX512),
}
_QUANTIZE = """
import sys
sys.path[:0] = sys.argv[1:3]
from golden_blocks import rows, weights
from surgeon_kernels import quantize
for name in sys.argv[3:]:
    for block in quantize(rows(), name, weights(), compat=True):
        print(block.tobytes().hex())
"""


@pytest.mark.parametrize("name", _PROCESSORS)
def test_same_bytes(name: str) -> None:
    llvm, features, present = _PROCESSORS[name]
    if not present:
        pytest.skip(f"this processor is no better than {name}, or of another kind")
    folders = (str(Path(__file__).parent), str(Path(surgeon_kernels.__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", _QUANTIZE, *folders, *_TYPES],
        env={**os.environ, "NUMBA_CPU_NAME": llvm, "NUMBA_CPU_FEATURES": features},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(RECORD.read_text())
    assert done.stdout.split() == [block for type_ in _TYPES for block in record[key(type_, True)]]
