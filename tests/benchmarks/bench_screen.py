"""How fast the screen answers, measured from outside: keys into a pseudo terminal, bytes and times out of it.

    python tests/benchmarks/bench_screen.py [--rounds N] [--unfolded] [--experts]

The model is sparse: 3,002 tensors in 250 layers, with an importance matrix. A paint ends with the last byte of a burst;
what comes later than QUIET after it (the detail pane, which waits for the cursor to rest) is counted on its own.
--unfolded: 61 layers of 256 experts with a tensor for each of them, 16,106 in all.
--experts: a model of 61 layers of 256 experts instead, in its view of experts.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import numpy as np

from surgeon.gguf.file import Value, ValueType
from surgeon.gguf.layout import Entry, header
from surgeon.imatrix.files import save_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence
from surgeon.imatrix.influence import save as save_with_experts
from surgeon_kernels.formats import FORMATS

LAYERS = 250
SHAPES = {
    "attn_norm": (1024,),
    "attn_q": (1024, 1024),
    "attn_k": (1024, 256),
    "attn_v": (1024, 256),
    "attn_output": (1024, 1024),
    "attn_q_norm": (128,),
    "attn_k_norm": (128,),
    "ffn_norm": (1024,),
    "ffn_gate": (1024, 4096),
    "ffn_up": (1024, 4096),
    "ffn_down": (4096, 1024),
    "post_ffw_norm": (1024,),
}
UNFOLDED = {
    "attn_norm": (1024,),
    "attn_q": (1024, 1024),
    "attn_k": (1024, 256),
    "attn_v": (1024, 256),
    "attn_output": (1024, 1024),
    "ffn_norm": (1024,),
    "ffn_gate_inp": (1024, 256),
    "ffn_up": (1024, 256),
} | {f"ffn_down.{expert}": (256, 1024) for expert in range(256)}
QUIET = 0.03  # seconds


def sparse_model(
    folder: Path, layers: int = LAYERS, kinds: Mapping[str, tuple[int, ...]] = SHAPES
) -> tuple[Path, Path]:
    """The model and its importance matrix."""
    shapes = {"token_embd.weight": (1024, 32000), "output.weight": (1024, 32000)}
    shapes |= {f"blk.{layer}.{short}.weight": ne for layer in range(layers) for short, ne in kinds.items()}
    entries = []
    for name, ne in shapes.items():
        kind = FORMATS["F32" if len(ne) == 1 else "F16"]
        entries.append(Entry(name, ne, kind.number, int(np.prod(ne)) * kind.block_bytes))
    pairs = [
        ("general.architecture", Value.of(ValueType.STRING, "llama")),
        ("llama.block_count", Value.of(ValueType.UINT32, layers)),
    ]
    layout = header(pairs, entries, 32)
    model = folder / "sparse.gguf"
    with model.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)
    random = np.random.default_rng(0)
    measured = {
        name: ImatrixEntry(random.random((1, ne[0]), dtype=np.float32), np.array([512], np.int64))
        for name, ne in shapes.items()
        if len(ne) > 1 and name.startswith("blk")
    }
    imatrix = folder / "imatrix.gguf"
    save_gguf(Imatrix(imatrix, measured, ("random",), 1), imatrix)
    return model, imatrix


@dataclass(frozen=True)
class Paint:
    """wall: milliseconds from the key to the last byte; cpu: of them, those the program itself ran."""

    wall: float
    size: int
    cpu: float


class Screen:
    """The program on a pseudo terminal."""

    def __init__(self, arguments: list[str], state: Path, size: tuple[int, int] = (140, 45)) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        environment = dict(os.environ, TERM="xterm-256color", XDG_STATE_HOME=str(state), XDG_CONFIG_HOME=str(state))
        environment.pop("COLORTERM", None)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "surgeon", *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)

    def burst(self, quiet: float = QUIET, patience: float = 20.0) -> tuple[float, int]:
        """(time of the last byte, number of bytes) of what is drawn until nothing comes for `quiet` seconds."""
        size, last = 0, time.monotonic()
        while True:
            ready, _, _ = select.select([self.master], [], [], quiet if size else patience)
            if not ready:
                return last, size
            size += len(os.read(self.master, 1 << 20))
            last = time.monotonic()

    def first_paint(self) -> float:
        """Seconds from the start of the process to the first byte of the tree."""
        seen = b""
        while b"blk.0" not in seen:
            seen += os.read(self.master, 1 << 20)
        return time.monotonic() - self.began

    def key(self, key: str, quiet: float = QUIET) -> Paint:
        cpu, began = self.cpu(), time.monotonic()
        os.write(self.master, key.encode())
        last, size = self.burst(quiet)
        return Paint(1000 * (last - began), size, self.cpu() - cpu)

    def cpu(self) -> float:
        """Milliseconds the program's main thread has run; 0 where the kernel does not tell (not Linux)."""
        try:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e6
        except OSError:
            return 0.0

    def megabytes(self) -> float:
        """Memory of the program itself, without its children; 0 where the kernel does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/status").read_text().split()
            return int(fields[fields.index("VmRSS:") + 1]) / 1000
        except OSError:
            return 0.0

    def settle(self) -> int:
        """Wait for what is drawn late; its bytes."""
        return self.burst(0.4, 0.4)[1]

    def close(self) -> None:
        os.write(self.master, b"q")
        while True:
            try:
                if not os.read(self.master, 1 << 20):
                    break
            except OSError:
                break
        os.close(self.master)
        self.process.wait(timeout=20)


def row(what: str, paints: list[Paint], limit: str) -> str:
    times = sorted(paint.wall for paint in paints)
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    cpu = statistics.median(paint.cpu for paint in paints)
    size = statistics.median(paint.size for paint in paints)
    return f"{what:<30} {statistics.median(times):8.1f} {p95:8.1f} {cpu:8.1f} {size:8.0f}   {limit}"


def measure(screen: Screen, rounds: int, title: str) -> None:
    print(f"{title:<30} {'median':>8} {'p95':>8} {'cpu':>8} {'bytes':>8}   ms; cpu, bytes: median")
    filters = [filtered(screen) for _ in range(max(4, rounds // 8))]
    print(row("Enter in the filter", filters, ""))
    folds = [screen.key("z", 0.25) for _ in range(2 * (rounds // 8) + 2)]
    print(row("unfold all, fold all", folds, "<= 500 ms"))
    screen.key("z", 0.25)
    screen.settle()
    moves, late = [], []
    for _ in range(rounds):
        moves.append(screen.key("j"))
        late.append(screen.settle())
    print(row("cursor down", moves, "p95 <= 50 ms, <= 700 bytes"))
    print(f"{'  detail pane, when it rests':<30} {'':8} {'':8} {'':8} {statistics.median(late):8.0f}")
    for what, key in (("page down", "\x06"), ("next layer", "J"), ("prune", "p"), ("undo", "u"), ("mark", " ")):
        values = []
        for _ in range(max(4, rounds // 4)):
            values.append(screen.key(key))
            screen.settle()
        print(row(what, values, "p95 <= 50 ms"))
    began = time.monotonic()
    os.write(screen.master, b"j" * 30)
    last, size = screen.burst()
    print(f"{'a held key, 30 rows':<30} {1000 * (last - began) / 30:8.1f} {'':>8} {'':>8} {size / 30:8.0f}   per row")
    measure_memory(screen)


def filtered(screen: Screen) -> Paint:
    for key in "/ffn_down":
        screen.key(key)
    paint = screen.key("\r", 0.4)
    screen.key("\x1b", 0.4)
    return paint


def measure_memory(screen: Screen) -> None:
    """Of the program before and after the picker has measured a tensor in every type."""
    before = screen.megabytes()
    for key in ("g", "j", "l", "j", "j", "t"):
        screen.key(key)
    screen.burst(10.0)  # a type may take long, the first time
    print(f"{'memory after the type picker':<30} {screen.megabytes():8.0f} MB, {before:.0f} before   <= 150 MB")
    screen.key("\x1b", 0.4)


def measure_experts(folder: Path, rounds: int) -> None:
    """The view of experts x layers at two sizes of the terminal: what moves, what edits."""
    from bench_experts import large_model, large_sums

    model, imatrix = large_model(folder), folder / "imatrix.gguf"
    entries = {
        f"blk.{layer}.attn_q_a.weight": ImatrixEntry(np.ones((1, 7168), np.float32), np.array([512], np.int64))
        for layer in range(61)
    }
    influence = Influence(np.ones((61, 5)), experts=large_sums())
    save_with_experts(Imatrix(imatrix, entries, ("random",), 1), influence, imatrix)
    for size in ((80, 24), (200, 60)):
        screen = Screen([str(model), "--imatrix", str(imatrix)], folder, size)
        print(f"start to first paint {screen.first_paint():.2f} s")
        screen.settle()
        print(f"{f'1,086 tensors, {size[0]}x{size[1]}':<30} {'median':>8} {'p95':>8} {'cpu':>8} {'bytes':>8}   ms")
        print(row("open the view", [opened_and_left(screen) for _ in range(max(4, rounds // 4))], ""))
        screen.key("X")
        screen.settle()
        for what, keys in EXPERT_KEYS.items():
            values = []
            for number in range(rounds):
                values.append(screen.key(keys[number % len(keys)]))
                screen.settle()
            print(row(what, values, "p95 <= 50 ms"), flush=True)
        screen.key("\x1b", 0.3)
        screen.settle()
        screen.close()


EXPERT_KEYS = {
    "move": "jlkljl",
    "prune a cell, restore it": " ",
    "least of all layers": "+++-",
    "undo": "u",
    "another figure": "v",
    "one layer in a row": "z",
}


def opened_and_left(screen: Screen) -> Paint:
    paint = screen.key("X")
    screen.settle()
    screen.key("\x1b", 0.3)
    screen.settle()
    return paint


def measure_tree(folder: Path, rounds: int, *, unfolded: bool) -> None:
    model, imatrix = sparse_model(folder, 61, UNFOLDED) if unfolded else sparse_model(folder)
    tensors = "16,106 tensors" if unfolded else "3,002 tensors"
    for what, arguments in (
        ("start to first paint", [str(model)]),
        ("the same, with imatrix", [str(model), "--imatrix", str(imatrix)]),
    ):
        starts = []
        for _ in range(3):
            screen = Screen(arguments, folder)
            starts.append(screen.first_paint())
            screen.settle()
            screen.close()
        print(f"{what:<34} {min(starts):8.2f} s (best of 3)   <= 1.0 s")
    for size in ((140, 45), (200, 60)):
        screen = Screen([str(model), "--imatrix", str(imatrix)], folder, size)
        screen.first_paint()
        screen.burst(2.0, 2.0)
        if size == (140, 45):
            measure(screen, rounds, f"{tensors}, 140x45")
        else:
            paints = [filtered(screen) for _ in range(max(4, rounds // 8))]
            print(row("Enter in the filter, 200x60", paints, "<= 40,000 bytes"))
        screen.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--experts", action="store_true")
    parser.add_argument("--unfolded", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.experts:
            measure_experts(Path(name), options.rounds)
        else:
            measure_tree(Path(name), options.rounds, unfolded=options.unfolded)


if __name__ == "__main__":
    main()
