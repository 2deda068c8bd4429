"""Makes the pictures in this folder from the running program on the bundled model: screenshots/make.py [NAME…]."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from surgeon.commands.demo import DEMO, IMATRIX, MODEL
from surgeon.model.model import load_model
from surgeon.session.candidates import TYPES
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config

HERE = Path(__file__).parent
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
    while len(measured) < len(TYPES):
        await pilot.pause(0.1)


async def rank(pilot: Pilot[int], session: Session) -> None:
    """All ffn_down in one list, by CosSim."""
    main = pilot.app.main  # type: ignore[attr-defined]
    main.apply_filter("ffn_down")
    main.look(flat=True)
    main.apply_sort("cos")


async def rule(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("colon", *r"\.", "left_parenthesis", "1", "left_square_bracket", *"0-9", "right_square_bracket")
    await pilot.press("vertical_line", "2", "right_parenthesis", *r"\.ffn", "underscore", *"down=q6", "underscore", "k")
    await pilot.pause(0.2)
    pilot.app.screen.query_one("Input").cursor_blink = False  # type: ignore[attr-defined]


async def write(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("w")
    pilot.app.screen.query_one("Input").cursor_blink = False  # type: ignore[attr-defined]


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
}


async def make(name: str, folder: Path) -> None:
    size, scene, config = SCENES[name]
    session = Session(load_model(folder / MODEL))
    session.use_imatrix(folder / IMATRIX)
    session.set_file_type("Q4_K_M")
    session.add_rule("attn_v=q8_0")
    session.toggle_prune([2])
    app = SurgeonApp(session, config, persistent=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await scene(pilot, session)
        await pilot.pause(0.3)
        (HERE / f"{name}.svg").write_text(app.export_screenshot(title=f"surgeon {MODEL}"), encoding="utf-8")


def main() -> None:
    # A folder of a fixed name, because the path of the output is in one of the pictures.
    folder = Path(tempfile.gettempdir()) / "models"
    if folder.exists():
        sys.exit(f"{folder} is there already; the pictures need a folder of that name for themselves")
    folder.mkdir()
    try:
        for name in (MODEL, IMATRIX):
            shutil.copyfile(DEMO / name, folder / name)
        for name in sys.argv[1:] or SCENES:
            asyncio.run(make(name, folder))
            print(HERE / f"{name}.svg")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
