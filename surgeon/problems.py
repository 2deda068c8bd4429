"""What the pre-flight list says: one line each, worst first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One line shown before anything is written: errors block writing, a warning asks, a note informs."""

    severity: Severity
    text: str
