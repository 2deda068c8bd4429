"""What stands on the terminal, so that of a paint only the pieces that differ are sent.

Textual paints a whole screen whenever a dialog closes or a layout changes, and paints it again when the layout is done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.strip import Strip


class Picture:
    """Pieces of lines as they were sent. Anything else that writes on the terminal asks for a new one."""

    def __init__(self) -> None:
        self._lines: defaultdict[int, dict[int, tuple[int, str]]] = defaultdict(dict)

    def put(self, x: int, y: int, end: int, text: str) -> bool:
        """Note that `text` fills line `y` from cell `x` to before `end`; False: it stands there already."""
        line = self._lines[y]
        if line.get(x) == (end, text):
            return False
        for start in [start for start, (stop, _) in line.items() if start < end and stop > x]:
            del line[start]
        line[x] = (end, text)
        return True


class Changes(CompositorUpdate):
    """Of an update that is sent now, what the picture lacked."""

    def __init__(self, update: LayoutUpdate | ChopsUpdate, picture: Picture, console: Console) -> None:
        out: list[str] = []
        at = (-1, -1)
        for x, y, strip in _whole(update) if isinstance(update, LayoutUpdate) else _parts(update):
            text, end = strip.render(console), x + strip.cell_length
            if picture.put(x, y, end, text):
                out += (text,) if at == (x, y) else (Control.move_to(x, y).segment.text, text)
                at = end, y
        self.text = "".join(out)

    def render_segments(self, console: Console) -> str:
        return self.text


def _whole(update: LayoutUpdate) -> Iterator[tuple[int, int, Strip]]:
    """(cell, line, piece) of a paint of everything."""
    for y, strips in enumerate(update.strips, update.region.y):
        x = update.region.x
        for strip in strips:
            yield x, y, strip
            x += strip.cell_length


def _parts(update: ChopsUpdate) -> Iterator[tuple[int, int, Strip]]:
    """(cell, line, piece) of a paint of some spans; each begins where the widget does."""
    for y, start, stop in update.spans:
        for (x, strip), end in zip(update.chops[y].items(), update.chop_ends[y], strict=True):
            if strip is not None and x < stop and end > start:
                yield x, y, strip if end <= stop else strip.crop(0, stop - x)
