"""JSON that is JSON: no NaN goes out, and what comes in may be anything."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON in ASCII; figures that are none (NaN, infinity) become null. Raises TypeError."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read_json(text: bytes | str) -> Any:
    """The value in `text`. Raises ValueError, with one line, for whatever stands in the way.

    That is also nesting as deep as Python's stack, a number of thousands of digits and bytes that are not text; NaN and
    Infinity, which are not JSON, count as null.
    """
    try:
        return json.loads(text, parse_constant=lambda _name: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
