"""How large the model may be, as the user says it."""

from __future__ import annotations

import re

from surgeon.errors import UsageError

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def read_size(text: str, option: str = "--size") -> int:
    """Bytes of `4.2GB` (decimal), `24GiB` (binary), `4.2G` or a plain number. Raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None or not 0 < float(match[1]) < 1e30:
        raise UsageError(f"{option} {text:.60}: not a size; write 4.2GB, 24GiB or a number of bytes")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].lower()])
