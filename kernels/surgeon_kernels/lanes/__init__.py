"""Sixteen numbers at a time, as LLVM vectors, for every processor. Imports numba and llvmlite, and no format."""
