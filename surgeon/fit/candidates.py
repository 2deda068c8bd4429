"""The types that may be given to a tensor, and the bytes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.errors import UsageError
from surgeon.imatrix.imatrix import Imatrix
from surgeon.plan.plan import tensor_type
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon_kernels.formats import FORMATS, LOW_BIT, REQUIRES_IMATRIX, USES_CODEBOOK
from surgeon_kernels.registry import quantizable

# In order of bytes. For rows that 256 divides the K types are better than the old ones at every size.
K_TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
CODEBOOKS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
SHORT_BLOCKS = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
LOW, MIDDLE = ("Q2_K", "Q4_0"), ("Q4_K", "Q5_1")  # what is probed, and what where 256 does not divide the row


@dataclass(frozen=True)
class TypeSet:
    """types: asked for by name, in any order; empty: all that suit the row. fast: none that searches a codebook."""

    types: tuple[str, ...] = ()
    fast: bool = False

    @classmethod
    def of(cls, text: str | None, *, fast: bool) -> TypeSet:
        """From `--types Q3_K,Q4_K`. Raises SurgeonError for what is not a type that can be written."""
        names = tuple(dict.fromkeys(tensor_type(part.strip()) for part in (text or "").split(",") if part.strip()))
        wrong = [name for name in names if name not in quantizable]
        if wrong:
            raise UsageError(
                f"--types {wrong[0]}: cannot be quantized to; choose among {' '.join(sorted(quantizable))}"
            )
        return cls(names, fast)

    def offered(self, facts: TensorFacts) -> tuple[str, ...]:
        """Whatever fits the row, by size."""
        names: Sequence[str] = self.types
        if not names:
            names = SHORT_BLOCKS if facts.columns % 256 else (*CODEBOOKS, *K_TYPES)
        fitting = [name for name in names if facts.columns % FORMATS[name].block == 0]
        return tuple(name for name in fitting if not (self.fast and name in USES_CODEBOOK))


def compared(facts: TensorFacts) -> tuple[str, ...]:
    """The types that llama-quantize's usual mixes give such rows, and that are quick to try."""
    return SHORT_BLOCKS if facts.columns % 256 else K_TYPES


def candidates(facts: TensorFacts, offered: Sequence[str], imatrix: Imatrix | None) -> tuple[str, ...]:
    """Of the types offered those this tensor can have: none without the importances it needs, none larger than now."""
    found = []
    has_weights = imatrix is not None and imatrix.sizes.get(facts.name) == facts.columns * facts.matrices
    for name in offered:
        if name in (LOW_BIT | REQUIRES_IMATRIX) and not has_weights:
            continue
        if facts.nbytes_as(name) < facts.tensor.nbytes:
            found.append(name)
    return tuple(found)


def probe_types(facts: TensorFacts) -> tuple[str, str]:
    """The low and the middle type that a group with this tensor is probed at."""
    place = 1 if facts.columns % 256 else 0
    return LOW[place], MIDDLE[place]
