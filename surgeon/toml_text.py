"""TOML that may hold anything."""

from __future__ import annotations

from typing import Any


def read_toml(text: str) -> dict[str, Any]:
    """The table in `text`, with or without a byte order mark. Raises ValueError, with one line, for what is none.

    That is also nesting as deep as Python's stack and a number of thousands of digits.
    """
    import tomllib  # not for `--help`

    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
