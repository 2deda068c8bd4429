"""The tensor formats of GGUF: number, block length and block size of each.

Pure data without numpy, so that a command line can speak of types before anything heavy is imported. Numbers and sizes
are those of ggml's type table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ImatrixUse(IntEnum):
    """What a quantizer makes of an importance matrix; each includes the ones before."""

    IGNORES = 0
    USES = 1  # weighs its error by it
    LOW_BIT = 2  # llama-quantize refuses the type without one
    REQUIRES = 3  # cannot be quantized without one: ggml stops the process, here it is a ValueError


_USES, _LOW_BIT, _REQUIRES = ImatrixUse.USES, ImatrixUse.LOW_BIT, ImatrixUse.REQUIRES


@dataclass(frozen=True, slots=True)
class Format:
    """One tensor format.

    name: as ggml prints it, upper case (`Q4_K`); number: the id stored in a GGUF; block: elements per block;
    block_bytes: bytes per block; imatrix: what its quantizer makes of one; codebook: its quantizer searches a codebook,
    which is slow; fallback: the type that takes its place where its block does not divide the row (None: F16 takes the
    place of blocks of up to 32, nothing that of larger ones);
    kernels: quants/ has a module for it, called like the format in lower case.
    """

    name: str
    number: int
    block: int
    block_bytes: int
    imatrix: ImatrixUse = ImatrixUse.IGNORES
    codebook: bool = False
    fallback: str | None = None
    kernels: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """Elements and bytes per block."""
        return self.block, self.block_bytes

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
        Format("Q4_0", 2, 32, 18, _USES),
        Format("Q4_1", 3, 32, 20, _USES),
        Format("Q5_0", 6, 32, 22, _USES),
        Format("Q5_1", 7, 32, 24, _USES),
        Format("Q8_0", 8, 32, 34),
        Format("Q8_1", 9, 32, 36, kernels=False),
        Format("Q2_K", 10, 256, 84, _USES, fallback="Q4_0"),
        Format("Q3_K", 11, 256, 110, _USES, fallback="Q4_0"),
        Format("Q4_K", 12, 256, 144, _USES, fallback="Q5_0"),
        Format("Q5_K", 13, 256, 176, _USES, fallback="Q5_1"),
        Format("Q6_K", 14, 256, 210, _USES, fallback="Q8_0"),
        Format("Q8_K", 15, 256, 292, kernels=False),
        Format("IQ2_XXS", 16, 256, 66, _REQUIRES, codebook=True, fallback="IQ4_NL"),
        Format("IQ2_XS", 17, 256, 74, _REQUIRES, codebook=True, fallback="IQ4_NL"),
        Format("IQ3_XXS", 18, 256, 98, _LOW_BIT, codebook=True, fallback="IQ4_NL"),
        Format("IQ1_S", 19, 256, 50, _REQUIRES, codebook=True, fallback="IQ4_NL"),
        Format("IQ4_NL", 20, 32, 18, _USES),
        Format("IQ3_S", 21, 256, 110, _USES, codebook=True, fallback="IQ4_NL"),
        Format("IQ2_S", 22, 256, 82, _LOW_BIT, codebook=True, fallback="IQ4_NL"),
        Format("IQ4_XS", 23, 256, 136, _USES, fallback="IQ4_NL"),
        Format("I8", 24, 1, 1, kernels=False),
        Format("I16", 25, 1, 2, kernels=False),
        Format("I32", 26, 1, 4, kernels=False),
        Format("I64", 27, 1, 8, kernels=False),
        Format("F64", 28, 1, 8, kernels=False),
        Format("IQ1_M", 29, 256, 56, _LOW_BIT, codebook=True, fallback="IQ4_NL"),
        Format("BF16", 30, 1, 2),
        Format("TQ1_0", 34, 256, 54, fallback="Q4_0"),
        Format("TQ2_0", 35, 256, 66, fallback="Q4_0"),
        Format("MXFP4", 39, 32, 17),
        Format("NVFP4", 40, 64, 36),
        Format("Q1_0", 41, 128, 18),
        Format("Q2_0", 42, 64, 18, fallback="Q4_0"),
    )
}

BY_NUMBER: dict[int, Format] = {format_.number: format_ for format_ in FORMATS.values()}


def _that_use(least: ImatrixUse) -> frozenset[str]:
    return frozenset(name for name, format_ in FORMATS.items() if format_.imatrix >= least)


USES_IMATRIX = _that_use(ImatrixUse.USES)
LOW_BIT = _that_use(ImatrixUse.LOW_BIT)
REQUIRES_IMATRIX = _that_use(ImatrixUse.REQUIRES)
USES_CODEBOOK = frozenset(name for name, format_ in FORMATS.items() if format_.codebook)


def by_name(name: str) -> Format:
    """The format called `name`, in any case; raises ValueError with the nearest names."""
    found = FORMATS.get(name.upper())
    if found is None:
        import difflib

        near = difflib.get_close_matches(name.upper(), FORMATS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {' '.join(FORMATS)}"
        raise ValueError(f"unknown tensor type {name!r}{hint}")
    return found
