"""The TYPEs of llama-quantize's command line: names, numbers, base types."""

from __future__ import annotations

import re
from dataclasses import dataclass

from surgeon.errors import SurgeonError


@dataclass(frozen=True, slots=True)
class FileType:
    """A TYPE of the command line; number: stored as `general.file_type`; base: tensor type, None for COPY."""

    name: str
    number: int
    base: str | None
    description: str


def _table(*rows: tuple[str, int, str | None, str]) -> dict[str, FileType]:
    return {name: FileType(name, number, base, text) for name, number, base, text in rows}


# In the order in which names and numbers are tried: 0 is F32, not COPY.
FILE_TYPES: dict[str, FileType] = _table(
    ("Q1_0", 40, "Q1_0", "1.125 bpw"),
    ("Q2_0", 41, "Q2_0", "2.25 bpw, groups of 64"),
    ("Q4_0", 2, "Q4_0", "4.34G, +0.4685 ppl @ Llama-3-8B"),
    ("Q4_1", 3, "Q4_1", "4.78G, +0.4511 ppl @ Llama-3-8B"),
    ("MXFP4_MOE", 38, "MXFP4", "MXFP4 experts, the rest Q8_0"),
    ("Q5_0", 8, "Q5_0", "5.21G, +0.1316 ppl @ Llama-3-8B"),
    ("Q5_1", 9, "Q5_1", "5.65G, +0.1062 ppl @ Llama-3-8B"),
    ("IQ2_XXS", 19, "IQ2_XXS", "2.06 bpw"),
    ("IQ2_XS", 20, "IQ2_XS", "2.31 bpw"),
    ("IQ2_S", 28, "IQ2_XS", "2.5 bpw"),
    ("IQ2_M", 29, "IQ2_S", "2.7 bpw"),
    ("IQ1_S", 24, "IQ1_S", "1.56 bpw"),
    ("IQ1_M", 31, "IQ1_M", "1.75 bpw"),
    ("TQ1_0", 36, "TQ1_0", "1.69 bpw, ternary"),
    ("TQ2_0", 37, "TQ2_0", "2.06 bpw, ternary"),
    ("Q2_K", 10, "Q2_K", "2.96G, +3.5199 ppl @ Llama-3-8B"),
    ("Q2_K_S", 21, "Q2_K", "2.96G, +3.1836 ppl @ Llama-3-8B"),
    ("IQ3_XXS", 23, "IQ3_XXS", "3.06 bpw"),
    ("IQ3_S", 26, "IQ3_S", "3.44 bpw"),
    ("IQ3_M", 27, "IQ3_S", "3.66 bpw mix"),
    ("Q3_K", 12, "Q3_K", "another name of Q3_K_M"),
    ("IQ3_XS", 22, "IQ3_S", "3.3 bpw"),
    ("Q3_K_S", 11, "Q3_K", "3.41G, +1.6321 ppl"),
    ("Q3_K_M", 12, "Q3_K", "3.74G, +0.6569 ppl"),
    ("Q3_K_L", 13, "Q3_K", "4.03G, +0.5562 ppl"),
    ("IQ4_NL", 25, "IQ4_NL", "4.50 bpw, non-linear"),
    ("IQ4_XS", 30, "IQ4_XS", "4.25 bpw, non-linear"),
    ("Q4_K", 15, "Q4_K", "another name of Q4_K_M"),
    ("Q4_K_S", 14, "Q4_K", "4.37G, +0.2689 ppl"),
    ("Q4_K_M", 15, "Q4_K", "4.58G, +0.1754 ppl"),
    ("Q5_K", 17, "Q5_K", "another name of Q5_K_M"),
    ("Q5_K_S", 16, "Q5_K", "5.21G, +0.1049 ppl"),
    ("Q5_K_M", 17, "Q5_K", "5.33G, +0.0569 ppl"),
    ("Q6_K", 18, "Q6_K", "6.14G, +0.0217 ppl"),
    ("Q8_0", 7, "Q8_0", "7.96G, +0.0026 ppl"),
    ("F16", 1, "F16", "14.00G, +0.0020 ppl @ Mistral-7B"),
    ("BF16", 32, "BF16", "14.00G, -0.0050 ppl @ Mistral-7B"),
    ("F32", 0, "F32", "26.00G @ 7B"),
    ("COPY", 0, None, "only copy tensors, no quantizing"),
)


_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)")


def find_file_type(text: str) -> FileType | None:
    """The TYPE that `text` names, in any case, or by number (leading digits are enough: "15abc" is 15)."""
    found = FILE_TYPES.get(text.upper())
    if found is not None:
        return found
    number = _LEADING_INTEGER.match(text)
    if number is None or len(number[1]) > 4000:  # Python reads no number much longer
        return None
    return next((entry for entry in FILE_TYPES.values() if entry.number == int(number[1])), None)


def parse_file_type(text: str) -> FileType:
    """As `find_file_type`; raises SurgeonError naming near ones when there is none."""
    found = find_file_type(text)
    if found is None:
        import difflib

        near = difflib.get_close_matches(text.upper(), FILE_TYPES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {' '.join(FILE_TYPES)}"
        raise SurgeonError(f"unknown TYPE {text!r:.60}: {hint}")
    return found
