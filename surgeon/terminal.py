"""Text of others on the user's terminal: shown, never obeyed.

File names, recipes, metadata and tensor names may hold escape sequences, signs that turn the direction of writing
round, or line ends that forge a line of ours. `escaping()` puts a filter between the program and both its streams;
`escaped` is for text that must stay on one line, and for the screen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `re` cost `surgeon --help` a third of its time
    import re
    from typing import Any, TextIO

# Controls (C0 but tab and line feed, DEL, C1), formatting signs (Unicode's Cf: direction, width, tags), separators of
# lines and paragraphs, and halves of surrogate pairs, which stand for bytes that are not UTF-8.
_OBEYED = (
    "\0-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
)

_MOST = 1500  # characters of a message


def escaped(text: str) -> str:
    """`text` on one line, with `\\x1b`, `\\u202e`, `\\n` for what a terminal would obey."""
    return _without(text, "\n")


def message(text: str) -> str:
    """`escaped`, and short enough to be read: of a text that quotes a file's or an option's thousands of characters
    the middle is left out."""
    line = escaped(text)
    if len(line) <= _MOST:
        return line
    return f"{line[: _MOST // 2]} … {line[-_MOST // 2 :]}"


def cell(text: str) -> str:
    """`escaped`, and without tabs: for where the width of a text counts."""
    return _without(text, "\n\t")


def _without(text: str, obeyed_too: str) -> str:
    if text.isprintable():  # nothing that is obeyed is; tests hold that
        return text
    import re

    return re.sub(f"[{_OBEYED}{obeyed_too}]", _escape, text)  # compiled once: `re` keeps the last 512


def tell(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """Print lines, each of which stays one line whatever is in it."""
    for line in lines:
        print(escaped(line), file=stream)


def redraw(stream: TextIO, text: str, end: str = "") -> None:
    """Replace the line that the cursor is in by `text`: for progress on a terminal.

    Without an `end` it is cut to the terminal's width: what is wrapped is in two lines, of which one would stay.
    """
    import shutil

    line = escaped(text)
    if not end:
        line = line[: shutil.get_terminal_size().columns - 1]
    write = stream.control if isinstance(stream, EscapingStream) else stream.write
    write(f"\r\x1b[K{line}{end}")
    stream.flush()


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code in (9, 10, 13):
        return {9: r"\t", 10: r"\n", 13: r"\r"}[code]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


class EscapingStream:
    """A text stream on which nothing but `control` reaches the terminal's ear; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.control = stream.write

    def write(self, text: str) -> int:
        if text == "\n" or text.isprintable():  # the two that `print` writes of a line
            return self._stream.write(text)
        self._stream.write("\n".join(_without(line, "") for line in text.split("\n")))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def escaping() -> Iterator[None]:
    """Meanwhile stdout and stderr are filtered. The screen draws past them (it filters what it draws)."""
    before = sys.stdout, sys.stderr
    # A stream that the caller closed is None.
    sys.stdout, sys.stderr = (stream and EscapingStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
