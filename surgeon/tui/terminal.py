"""What comes from the terminal, and what is said to it beside the picture: title, end of a long job, mouse events."""

from __future__ import annotations

import codecs
import os
import re
import select
import time
from collections.abc import Iterable, Iterator

from textual import events
from textual._xterm_parser import XTermParser
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from surgeon.tui.picture import Picture
from surgeon.tui.sparing import spared

_LONGEST_TITLE = 120


# Escape, and then a key: of codes that begin so only those of Alt+B, Alt+F and Alt+Backspace (words in a field) count.
_ESCAPE_AND_KEY = re.compile(r"\x1b(?=[^\[\]OP_bf\x7f])")
_PASTE = re.compile(r"\x1b\[20([01])~")
_ESCAPE_SECONDS = 0.1  # after which an Escape was the key, and not the beginning of a code


class BurstParser(XTermParser):
    """Reads Escape and a key typed in one burst as these two; textual takes them for Alt and the key, or drops one."""

    def __init__(self) -> None:
        super().__init__()
        self._pasting = False
        self._escape_at: float | None = None  # when an Escape came of which the rest may be on the way

    def feed(self, data: str) -> Iterator[Message]:
        if self._escape_at is not None and data:
            self._escape_at = None
            data = "\x1b" + data
        if data.endswith("\x1b"):
            self._escape_at, data = time.monotonic(), data[:-1]
        at = 0
        for match in _ESCAPE_AND_KEY.finditer(data):
            yield from self._fed(data[at : match.start()])
            at = match.end()
            if not self._pasting:
                yield events.Key("escape", "\x1b")
        yield from self._fed(data[at:])

    def _fed(self, data: str) -> Iterable[Message]:
        for match in _PASTE.finditer(data):
            self._pasting = match[1] == "0"
        return super().feed(data) if data else ()

    def tick(self) -> Iterator[Message]:
        if self._escape_at is not None and time.monotonic() - self._escape_at >= _ESCAPE_SECONDS:
            self._escape_at = None
            yield events.Key("escape", "\x1b")
        yield from super().tick()


class SparingDriver(LinuxDriver):
    """Reads bursts of keys in order, and asks for clicks, the wheel and movement with a button down (1002), where
    textual asks for every movement (1003).

    picture: what was drawn since the terminal is this program's.
    """

    picture: Picture

    def start_application_mode(self) -> None:
        self.picture = Picture()
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def _get_terminal_size(self) -> tuple[int, int]:
        """The terminal's own size. Textual asks LINES and COLUMNS first, but what uses readline (Python's prompt among
        others) leaves them to its children, and no resize changes them."""
        try:
            columns, lines = os.get_terminal_size(self.fileno)
        except OSError:
            columns = lines = 0
        return (columns, lines) if columns and lines else super()._get_terminal_size()

    def run_input_thread(self) -> None:
        """Hand on what comes, until the driver ends."""
        parser, decode = BurstParser(), codecs.getincrementaldecoder("utf-8")("replace").decode
        while not self.exit_event.is_set():
            if select.select([self.fileno], [], [], _ESCAPE_SECONDS / 2)[0]:
                data = os.read(self.fileno, 4096)
                if not data:  # the terminal has gone
                    break
                for message in parser.feed(decode(data)):
                    self.process_message(message)
            for message in parser.tick():
                self.process_message(message)

    def write(self, data: str) -> None:
        super().write(spared(data))

    def _enable_mouse_support(self) -> None:
        if self._mouse:
            self.write("\x1b[?1000h\x1b[?1002h\x1b[?1006h")
            self.flush()

    def _disable_mouse_support(self) -> None:
        if self._mouse:
            self.write("\x1b[?1006l\x1b[?1002l\x1b[?1000l")
            self.flush()


class Beside:
    """Sends to the terminal of `driver`; nothing where there is none (in tests)."""

    def __init__(self, driver: Driver | None) -> None:
        self._driver = driver if isinstance(driver, LinuxDriver) else None
        self._title = ""

    def title(self, text: str) -> None:
        """The title of the terminal's window or tab; the one before is put aside at the first call."""
        text = _harmless(text)[:_LONGEST_TITLE]
        if text != self._title:
            self._write(("" if self._title else "\x1b[22;2t") + f"\x1b]2;{text}\x07")
            self._title = text

    def notice(self, text: str) -> None:
        """The bell, and a notification (OSC 9) where the terminal shows them."""
        self._write(f"\x07\x1b]9;{_harmless(text)}\x07")

    def leave(self) -> None:
        """The title there was before."""
        if self._title:
            self._write("\x1b[23;2t")
            self._title = ""

    def _write(self, text: str) -> None:
        if self._driver is not None and self._driver._writer_thread is not None:
            self._driver.write(text)


def _harmless(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
