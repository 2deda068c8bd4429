"""The tensor formats of GGUF: number, block length and block size of each.

Pure data without numpy, so that a command line can speak of types before anything heavy is imported. Numbers and sizes
are those of ggml's type table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """One tensor format.

    name: as ggml prints it, upper case (`Q4_K`); number: the id stored in a GGUF; block: elements per block;
    block_bytes: bytes per block.
    """

    name: str
    number: int
    block: int
    block_bytes: int

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.block_bytes / self.block

    @property
    def is_quantized(self) -> bool:
        return self.block > 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row; raises ValueError when `columns` is not a whole number of blocks."""
        if columns % self.block:
            raise ValueError(f"{self.name} needs rows of a multiple of {self.block}, not {columns}")
        return columns // self.block * self.block_bytes


FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format("F32", 0, 1, 4),
        Format("F16", 1, 1, 2),
        Format("Q4_0", 2, 32, 18),
        Format("Q4_1", 3, 32, 20),
        Format("Q5_0", 6, 32, 22),
        Format("Q5_1", 7, 32, 24),
        Format("Q8_0", 8, 32, 34),
        Format("Q8_1", 9, 32, 36),
        Format("Q2_K", 10, 256, 84),
        Format("Q3_K", 11, 256, 110),
        Format("Q4_K", 12, 256, 144),
        Format("Q5_K", 13, 256, 176),
        Format("Q6_K", 14, 256, 210),
        Format("Q8_K", 15, 256, 292),
        Format("IQ2_XXS", 16, 256, 66),
        Format("IQ2_XS", 17, 256, 74),
        Format("IQ3_XXS", 18, 256, 98),
        Format("IQ1_S", 19, 256, 50),
        Format("IQ4_NL", 20, 32, 18),
        Format("IQ3_S", 21, 256, 110),
        Format("IQ2_S", 22, 256, 82),
        Format("IQ4_XS", 23, 256, 136),
        Format("I8", 24, 1, 1),
        Format("I16", 25, 1, 2),
        Format("I32", 26, 1, 4),
        Format("I64", 27, 1, 8),
        Format("F64", 28, 1, 8),
        Format("IQ1_M", 29, 256, 56),
        Format("BF16", 30, 1, 2),
        Format("TQ1_0", 34, 256, 54),
        Format("TQ2_0", 35, 256, 66),
        Format("MXFP4", 39, 32, 17),
        Format("NVFP4", 40, 64, 36),
        Format("Q1_0", 41, 128, 18),
        Format("Q2_0", 42, 64, 18),
    )
}

BY_NUMBER: dict[int, Format] = {format_.number: format_ for format_ in FORMATS.values()}

# Formats whose quantizer weighs its error by an importance matrix; all others ignore one.
USES_IMATRIX = frozenset(
    "Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS".split()
)

# Formats whose quantizer searches a codebook: the slow ones.
USES_CODEBOOK = frozenset("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S".split())

# Formats that cannot be quantized at all without one (ggml stops the process; here it is a ValueError).
REQUIRES_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})


def by_name(name: str) -> Format:
    """The format called `name`, in any case; raises ValueError with the nearest names."""
    found = FORMATS.get(name.upper())
    if found is None:
        import difflib

        near = difflib.get_close_matches(name.upper(), FORMATS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {' '.join(FORMATS)}"
        raise ValueError(f"unknown tensor type {name!r}{hint}")
    return found
