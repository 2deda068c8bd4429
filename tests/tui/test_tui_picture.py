"""What is left out of a paint stands on the terminal already; a filter paints the tree once."""

from __future__ import annotations

import io
import itertools
import os
import pty
import random
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from surgeon.gguf.file import Value, ValueType
from surgeon.gguf.layout import Entry, header
from surgeon.imatrix.files import save_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.tui.picture import Changes, Picture
from surgeon_kernels.formats import FORMATS

WIDTH, HEIGHT = 24, 6
CONSOLE = Console(file=io.StringIO(), force_terminal=True, color_system="256")
TEXTS = (" ", "ab", "blk", "▅━", "層", "é")
STYLES = tuple(map(Style.parse, ("red on #262626", "white on #262626", "bold white on #262626", "none")))

Grid = dict[tuple[int, int], tuple[str, str]]


def draw(grid: Grid, data: str) -> None:
    """What a terminal makes of `data`: half a wide letter that is written over leaves a blank."""
    x = y = 0
    look = ""
    for at, code, letter in re.findall(r"\x1b\[(\d+;\d+)H|\x1b\[([\d;]*m)|([^\x1b])", data):
        if at:
            y, x = (int(part) - 1 for part in at.split(";"))
        elif code:
            look = "" if code in ("0m", "m") else look + code
        elif letter != "\n":
            wide = cell_len(letter)
            for cell in (x, x + wide - 1):
                torn = {x for x in (cell - 1, cell) if cell_len(grid.get((y, x), (" ", ""))[0]) == 2}
                if cell > x or x in torn or x - 1 in torn:
                    grid.update({(y, start + part): (" ", "") for start in torn for part in (0, 1)})
            grid[y, x] = (letter, look)
            grid.update({(y, x + 1): ("", look)} if wide == 2 else {})
            x += wide


def piece(chance: random.Random, width: int) -> Strip:
    """Letters of few texts, so that many pieces are alike."""
    texts = [(chance.choice(TEXTS), chance.choice(STYLES)) for _ in range(chance.randint(1, 2))]
    return Strip([Segment(text, style) for text, style in texts]).adjust_cell_length(width)


def paints(chance: random.Random) -> Iterator[LayoutUpdate | ChopsUpdate]:
    """Whole paints and parts of them, with pieces of other widths each time."""
    for number in range(40):
        cuts = [[0, *sorted(chance.sample(range(1, WIDTH), chance.randint(0, 2))), WIDTH] for _ in range(HEIGHT)]
        chops: list[dict[int, Strip | None]] = [
            {start: piece(chance, end - start) for start, end in itertools.pairwise(line)} for line in cuts
        ]
        if number == 0 or chance.random() < 0.3:
            whole = [[strip for strip in line.values() if strip is not None] for line in chops]
            yield LayoutUpdate(list(whole), Region(0, 0, WIDTH, HEIGHT))
            continue
        spans = []
        for y in sorted(chance.sample(range(HEIGHT), 3)):
            start, end = chance.choice(list(itertools.pairwise(cuts[y])))
            spans.append((y, start, chance.choice((end, min(end, start + 3)))))
        yield ChopsUpdate(chops, spans, [line[1:] for line in cuts])


@pytest.mark.parametrize("seed", range(20))
def test_the_same_stands_on_the_terminal(seed: int) -> None:
    chance, picture = random.Random(seed), Picture()
    ours, theirs = Grid(), Grid()
    for update in paints(chance):
        draw(ours, Changes(update, picture, CONSOLE).text)
        draw(theirs, update.render_segments(CONSOLE))
        assert ours == theirs
        assert Changes(update, picture, CONSOLE).text == "", "it stands there now"


LAYERS = 250
SHAPES = {
    "attn_norm": (64,), "attn_q": (64, 64), "attn_k": (64, 32), "attn_v": (64, 32), "attn_output": (64, 64),
    "attn_q_norm": (32,), "attn_k_norm": (32,), "ffn_norm": (64,), "ffn_gate": (64, 128), "ffn_up": (64, 128),
    "ffn_down": (128, 64), "post_ffw_norm": (64,),
}  # fmt: skip


def tall_model(folder: Path) -> tuple[Path, Path]:
    """3,000 tensors of holes, and an importance matrix of them."""
    shapes = {f"blk.{layer}.{short}.weight": ne for layer in range(LAYERS) for short, ne in SHAPES.items()}
    formats = {name: FORMATS["F32" if len(ne) == 1 else "F16"] for name, ne in shapes.items()}
    entries = [
        Entry(name, ne, formats[name].number, int(np.prod(ne)) * formats[name].block_bytes)
        for name, ne in shapes.items()
    ]
    pairs = [
        ("general.architecture", Value.of(ValueType.STRING, "llama")),
        ("llama.block_count", Value.of(ValueType.UINT32, LAYERS)),
    ]
    layout = header(pairs, entries, 32)
    model, imatrix = folder / "tall.gguf", folder / "tall.imatrix.gguf"
    with model.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)
    sums = np.random.default_rng(0)
    measured = {
        name: ImatrixEntry(sums.random((1, ne[0]), dtype=np.float32), np.array([512], np.int64))
        for name, ne in shapes.items()
        if len(ne) > 1
    }
    save_gguf(Imatrix(imatrix, measured, ("random",), 1), imatrix)
    return model, imatrix


class Screen:
    """The program on a pseudo terminal of 200x60, with another size in the environment, as readline leaves it."""

    def __init__(self, model: Path, imatrix: Path) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 200, 0, 0))
        environment = dict(os.environ, TERM="xterm-256color", LINES="24", COLUMNS="80")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "surgeon", model, "--imatrix", imatrix],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def drawn(self, until: str) -> bytes:
        """What is drawn up to the words `until`."""
        out, end = b"", time.monotonic() + 120
        while until.encode() not in out:
            assert time.monotonic() < end, f"waited in vain; drawn so far: {out[-2000:]!r}"
            if select.select([self.master], [], [], 0.5)[0]:
                out += os.read(self.master, 1 << 20)
        return out

    def keys(self, keys: str, until: str) -> bytes:
        os.write(self.master, keys.encode())
        return self.drawn(until)

    def all_of(self, key: str, until: str) -> bytes:
        """What `key` has drawn, and drawn again. A digit, which changes the lowest line alone, is looked at when all of
        that is done."""
        return self.keys(key, until) + self.keys("7", "goes to that layer")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    screen = Screen(*tall_model(tmp_path))
    yield screen
    screen.close()


def layers_drawn(data: bytes) -> Counter[str]:
    """How often each layer's row was drawn."""
    return Counter(re.findall(r"blk\.\d+(?= )", data.decode(errors="replace")))


def test_a_filter_paints_the_tree_once(screen: Screen) -> None:
    screen.drawn("━")  # the statistics come after the first paint
    screen.keys("/ffn_down", "250 of 3000")
    painted = screen.all_of("\r", "500 rows")
    assert layers_drawn(painted) == {f"blk.{layer}": 1 for layer in range(28)}
    assert len(painted) <= 40_000
    assert not re.search(rb"(\x1b\[\d+;\d+H)\1", painted), "a paint that changes nothing sends the cursor's place alone"
    again = screen.all_of("\x0c", "500 rows")
    assert layers_drawn(again) == layers_drawn(painted), "Ctrl+L draws everything anew, once"
