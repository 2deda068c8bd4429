"""Colours and attributes of what is drawn, said only where they change: a whole screen takes a third of the bytes."""

from __future__ import annotations

import re

_SGR = re.compile(r"\x1b\[([\d;]*)m")
_COLOUR = re.compile(r"[34]8;(?:5;\d+|2;\d+;\d+;\d+)|\d+")
_GROUNDS = {"48", *map(str, range(40, 48)), *map(str, range(100, 108))}
_INKS = {"38", *map(str, range(30, 38)), *map(str, range(90, 98))}


class _Style:
    """What a code of Rich's says, gathered since the last reset."""

    def __init__(self, code: str) -> None:
        parts = _COLOUR.findall(code)
        kinds = [part.split(";")[0] for part in parts]
        self.ink = next((part for part, kind in zip(parts, kinds, strict=True) if kind in _INKS), "39")
        self.ground = next((part for part, kind in zip(parts, kinds, strict=True) if kind in _GROUNDS), "49")
        self.rest = [part for part, kind in zip(parts, kinds, strict=True) if kind not in _INKS | _GROUNDS]
        self.code = code

    def after(self, other: _Style) -> str:
        """The code that leads here from `other`."""
        if self.rest != other.rest:
            return f"\x1b[0;{self.code}m" if self.code else "\x1b[0m"
        changed = [new for new, old in ((self.ink, other.ink), (self.ground, other.ground)) if new != old]
        return f"\x1b[{';'.join(changed)}m" if changed else ""


_PLAIN = _Style("")


def spared(data: str) -> str:
    """`data`, which begins and ends without attributes, with the codes that change nothing left out."""
    styles: dict[str, _Style] = {"": _PLAIN}
    out: list[str] = []
    shown = wanted = _PLAIN
    parts = _SGR.split(data)
    for number, part in enumerate(parts):
        if number % 2:
            code = "" if part in ("", "0") else f"{wanted.code};{part}".removeprefix(";")
            wanted = styles.get(code) or styles.setdefault(code, _Style(code))
        elif part:
            out += (wanted.after(shown), part)
            shown = wanted
    out.append(wanted.after(shown))
    return "".join(out)
