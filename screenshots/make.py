"""Makes the pictures in this folder from the running program: screenshots/make.py [NAME…].

Needs the extra `screenshots` and the font DejaVu Sans Mono.

Each is an SVG and a PNG; fonts of an SVG differ between viewers. Some show the bundled model and figures measured on
it. Those called after `large_model` show the shape of Gemma 3 12B, and their figures are illustrative where the program
would measure: its docstring says which. The pictures say so in their titles.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from large_model import LARGE, LARGE_IMATRIX, PRUNED, keep_trials, large_imatrix, large_model, large_session, scan_of
from png import png
from textual.pilot import Pilot
from textual.widgets import Static

from surgeon.commands.demo import DEMO, IMATRIX, MODEL
from surgeon.model.model import load_model
from surgeon.session.candidates import TYPES
from surgeon.session.queue import DONE, Entry
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config

HERE = Path(__file__).parent
Play = Callable[["Pilot[int]", Session], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """size: columns and rows; prepare: the session before it is shown; large: of Gemma 3 12B, not the bundled model."""

    play: Play
    size: tuple[int, int]
    config: Config = field(default_factory=Config)
    prepare: Callable[[Session], object] = lambda session: None
    large: bool = False


async def tree(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("J", "J", "J", "l", "j", "j")


async def wide(pilot: Pilot[int], session: Session) -> None:
    await pilot.press("z", "J", "J", "J", "j", "j", "j", "space", "right_square_bracket", "space", "k")


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


# --- of Gemma 3 12B


def ruled(session: Session) -> None:
    session.add_rule("attn_v=q8_0")
    session.add_rule(r"blk\.4[4-7]\.ffn_=q5_k")


def pruned(session: Session) -> None:
    ruled(session)
    session.toggle_prune(PRUNED)


def larger(session: Session) -> None:
    session.add_rule("ffn_down=q6_k")


async def overview(pilot: Pilot[int], session: Session) -> None:
    await pilot.press(*"JJJJJJ", "l", *"jjjjjjjjj")


async def map_(pilot: Pilot[int], session: Session) -> None:
    """A rectangle is selected: the feed-forward matrices of layers 12 to 17."""
    await pilot.press("M", "0", *"jjjj", "H", "L", *"ll", "v", *"lllll", *"jj")


async def bench(pilot: Pilot[int], session: Session) -> None:
    main = pilot.app.main  # type: ignore[attr-defined]
    keep_trials(session, main.journal)
    main.queue.add(Entry("evaluate", "gemma-3-12b-fit 8.0GB", state=DONE, note="KLD 0.0175"))
    main.queue.add(Entry("write", "gemma-3-12b-fit 6.5GB"), Entry("evaluate", "gemma-3-12b-fit 6.5GB"))
    main.queue.pause(True)
    await pilot.press("L", "j", "j")


async def plot(pilot: Pilot[int], session: Session) -> None:
    await bench(pilot, session)
    await pilot.press("p")


async def scan(pilot: Pilot[int], session: Session) -> None:
    main = pilot.app.main  # type: ignore[attr-defined]
    main.apply_sort("kld")
    main.apply_sort("kld")  # again: the least first
    main._begin(scan_of(session, session.model.file.path))


async def fit(pilot: Pilot[int], session: Session) -> None:
    keep_trials(session, pilot.app.main.journal)  # type: ignore[attr-defined]
    await pilot.press("F")
    pilot.app.screen.query_one("Input").cursor_blink = False  # type: ignore[attr-defined]


async def fragile(pilot: Pilot[int], session: Session) -> None:
    await fit(pilot, session)
    await pilot.press("tab")


SCENES: dict[str, Scene] = {
    "overview": Scene(overview, (140, 36), prepare=ruled, large=True),
    "map": Scene(map_, (80, 18), prepare=pruned, large=True),
    "bench": Scene(bench, (120, 30), large=True),
    "plot": Scene(plot, (110, 40), prepare=larger, large=True),
    "scan": Scene(scan, (110, 30), large=True),
    "fit": Scene(fit, (110, 40), large=True),
    "fragile": Scene(fragile, (110, 40), large=True),
    "demo": Scene(tree, (140, 45)),
    "small": Scene(tree, (80, 24)),
    "wide": Scene(wide, (170, 48)),
    "light": Scene(tree, (140, 45), Config(theme="light")),
    "ascii": Scene(tree, (80, 24), Config(ascii=True)),
    "types": Scene(types, (110, 40)),
    "rank": Scene(rank, (110, 24), Config(metric="cos")),
    "rule": Scene(rule, (110, 30)),
    "write": Scene(write, (110, 30)),
}


def small_session(folder: Path) -> Session:
    session = Session(load_model(folder / MODEL))
    session.use_imatrix(folder / IMATRIX)
    session.set_file_type("Q4_K_M")
    session.add_rule("attn_v=q8_0")
    session.toggle_prune([2])
    return session


async def make(name: str, folder: Path) -> None:
    scene = SCENES[name]
    session = large_session(folder) if scene.large else small_session(folder)
    scene.prepare(session)
    app = SurgeonApp(session, scene.config, persistent=False)
    async with app.run_test(size=scene.size) as pilot:
        await pilot.pause()
        await scene.play(pilot, session)
        await pilot.pause(0.3)
        title = f"surgeon {LARGE} (illustrative figures)" if scene.large else f"surgeon {MODEL}"
        picture = app.export_screenshot(title=title)
    (HERE / f"{name}.svg").write_text(picture, encoding="utf-8")
    (HERE / f"{name}.png").write_bytes(png(picture))


def main() -> None:
    # A folder of a fixed name, because the path of the output is in one of the pictures.
    folder = Path(tempfile.gettempdir()) / "models"
    if folder.exists():
        sys.exit(f"{folder} is there already; the pictures need a folder of that name for themselves")
    folder.mkdir()
    # Nothing of the user's own journals, and times that do not depend on the place.
    os.environ |= {"XDG_STATE_HOME": str(folder / "state"), "TZ": "UTC"}
    time.tzset()
    try:
        for name in (MODEL, IMATRIX):
            shutil.copyfile(DEMO / name, folder / name)
        large_model(folder / LARGE)
        large_imatrix(folder / LARGE, folder / LARGE_IMATRIX)
        for name in sys.argv[1:] or SCENES:
            asyncio.run(make(name, folder))
            print(HERE / f"{name}.png")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
