"""Makes the pictures in this folder from the running program on the bundled model: screenshots/make.py [NAME…]."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Static

from surgeon.commands.demo import DEMO, IMATRIX, MODEL
from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value, ValueType
from surgeon.model.model import load_model
from surgeon.session.candidates import TYPES
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config
from surgeon_kernels.formats import FORMATS

HERE = Path(__file__).parent
SHAPES = HERE.parent / "tests/golden/types/gemma-3-12b.json"
LARGE, LAYERS = "gemma-3-12b-BF16.gguf", 48
Scene = Callable[["Pilot[int]", Session], Awaitable[None]]


async def overview(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("J", "J", "J", "l", "j", "j")


async def small(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("J", "J", "J", "l", "j", "j")


async def wide(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("z", "J", "J", "j", "j", "j", "space", "right_square_bracket", "space")


async def types(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("J", "J", "J", "l", "j", "j", "t")
    measured = pilot.app.main.errors["blk.3.ffn_down.weight"]  # type: ignore[attr-defined]
    # The line below the list is emptied when the last error has come.
    while len(measured) < len(TYPES) or str(pilot.app.screen.query_one("#answer", Static).content):
        await pilot.pause(0.1)


async def rank(pilot: Pilot[int], session: Session) -> None:
    """All ffn_down in one list, by CosSim."""
    main = pilot.app.main  # type: ignore[attr-defined]
    main.apply_filter("ffn_down")
    main.look(flat=True)
    main.apply_sort("cos")


async def rule(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("colon", *r"\.", "left_parenthesis", "3", "vertical_line", "1", "left_square_bracket", *"0-9")
    await pilot.press("right_square_bracket", "right_parenthesis", *r"\.ffn", "underscore", *"up=q6", "underscore", "k")
    await pilot.pause(0.2)
    pilot.app.screen.query_one("Input").cursor_blink = False  # type: ignore[attr-defined]


async def write(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("w")
    pilot.app.screen.query_one("Input").cursor_blink = False  # type: ignore[attr-defined]


async def large_map(pilot: Pilot[int], session: Session) -> None:
    """A rectangle is selected: the feed-forward matrices of layers 12 to 17."""
    await pilot.press("M", "0", *"jjjj", "H", "L", *"ll", "v", *"lllll", *"jj")


SCENES: dict[str, tuple[tuple[int, int], Scene, Config]] = {
    "overview": ((140, 45), overview, Config()),
    "small": ((80, 24), small, Config()),
    "wide": ((200, 60), wide, Config()),
    "light": ((140, 45), overview, Config(theme="light")),
    "ascii": ((80, 24), small, Config(ascii=True)),
    "types": ((110, 40), types, Config()),
    "rank": ((110, 24), rank, Config(metric="cos")),
    "rule": ((110, 30), rule, Config()),
    "write": ((110, 30), write, Config()),
    "map": ((80, 18), large_map, Config()),
}


def large_model(path: Path) -> None:
    """A file with the names and shapes of Gemma 3 12B; the weights are a hole that takes no room."""
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))["tensors"]
    entries = []
    for pattern, (dims, kind) in shapes.items():
        ne, format_ = tuple(n for n in dims if n > 1), FORMATS[kind.upper()]
        for layer in range(LAYERS) if "*" in pattern else (0,):
            name = pattern.replace("*", str(layer))
            entries.append(Entry(name, ne, format_.number, math.prod(ne) * format_.block_bytes))
    layout = header(
        [
            ("general.architecture", Value.of(ValueType.STRING, "gemma3")),
            ("gemma3.block_count", Value.of(ValueType.UINT32, LAYERS)),
            ("gemma3.attention.sliding_window", Value.of(ValueType.UINT32, 1024)),
        ],
        entries,
        32,
    )
    with path.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)


def small_session(folder: Path) -> Session:
    session = Session(load_model(folder / MODEL))
    session.use_imatrix(folder / IMATRIX)
    session.set_file_type("Q4_K_M")
    session.add_rule("attn_v=q8_0")
    session.toggle_prune([2])
    return session


def large_session(folder: Path) -> Session:
    session = Session(load_model(folder / LARGE))
    session.set_file_type("Q4_K_M")
    session.add_rule("attn_v=q8_0")
    session.add_rule(r"blk\.4[4-7]\.ffn_=q5_k")
    session.toggle_prune([26, 29])
    return session


async def make(name: str, folder: Path) -> None:
    size, scene, config = SCENES[name]
    session = large_session(folder) if scene is large_map else small_session(folder)
    app = SurgeonApp(session, config, persistent=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await scene(pilot, session)
        await pilot.pause(0.3)
        (HERE / f"{name}.svg").write_text(
            app.export_screenshot(title=f"surgeon {LARGE if scene is large_map else MODEL}"), encoding="utf-8"
        )


def main() -> None:
    # A folder of a fixed name, because the path of the output is in one of the pictures.
    folder = Path(tempfile.gettempdir()) / "models"
    if folder.exists():
        sys.exit(f"{folder} is there already; the pictures need a folder of that name for themselves")
    folder.mkdir()
    try:
        for name in (MODEL, IMATRIX):
            shutil.copyfile(DEMO / name, folder / name)
        large_model(folder / LARGE)
        for name in sys.argv[1:] or SCENES:
            asyncio.run(make(name, folder))
            print(HERE / f"{name}.svg")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
