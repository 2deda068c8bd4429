"""What the processor that kernels are compiled for can do, as far as it decides which LLVM they emit.

Numba's NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are heeded, and Numba keeps kernels of different processors apart.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding
from numba.core.registry import cpu_target

_codegen: Any = cpu_target.target_context.codegen()
_triple, _, _features = _codegen.magic_tuple()
_HAS = frozenset(_features.split(","))

AVX512 = "+avx512f" in _HAS
AVX2 = "+avx2" in _HAS and not AVX512
"""AVX2 and nothing wider."""
ARM64 = _triple.startswith(("aarch64", "arm64"))
HALVES = ARM64 or "+f16c" in _HAS
"""There are instructions that convert float16."""

if AVX2:
    binding.initialize_native_asmparser()  # numba initialises what it uses itself; masks.py writes an instruction
