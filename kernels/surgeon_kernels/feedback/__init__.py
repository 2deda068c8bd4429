"""Quantizing with error feedback: the same types and bytes, with less error in what a layer puts out.

For a matrix W with the inputs x the damage of rounding W to Q is E|Wx - Qx|**2 = sum over rows of e H e', with e a row
of W - Q and H = E[x x'], the second moments of the input. Stock quantizers know only the diagonal of H and round every
weight on its own. Here the error of one weight is fed forward into those that are not rounded yet (GPTQ, LDLQ: Frantar
et al. 2022, Chee et al. 2023), on the grid that the stock search has fixed; then scales and codes are improved under
all of H.

    factors     H shrunk towards its diagonal and damped, and its factor
    layouts     the grid of each type with a code for each weight; point_layouts: of each with a codebook
    sweep       rounding column by column with feedback
    rounds      scales and codes improved in turn
    points      both for codebooks, vector by vector
    encoder     the public functions
"""

from __future__ import annotations

CODE_TYPES = frozenset(
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4 Q1_0 Q2_0 TQ1_0 TQ2_0".split()
)
"""Types with a code for each weight: swept column by column, then improved in rounds."""

POINT_TYPES = frozenset("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S".split())
"""Types with points of a codebook: swept vector by vector, likewise improved."""

feedback_types = CODE_TYPES | POINT_TYPES
"""Names of the types that can be encoded with feedback."""

CODES, POINTS = "codes", "points"


def kernel_set(name: str) -> str:
    """Which kernels encode a type of `feedback_types`: one set serves several."""
    return CODES if name in CODE_TYPES else POINTS
