"""Sessions and screens for the tests of the screen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot

from surgeon.model.model import load_model
from surgeon.session.rows import Row, TensorRow
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config
from surgeon.tui.drawing.spans import plain
from surgeon.tui.main_screen import MainScreen


def session_of(model: Path, imatrix: Path | None = None) -> Session:
    session = Session(load_model(model))
    if imatrix is not None:
        session.use_imatrix(imatrix)
    return session


def rows_as_dict(rows: list[Row]) -> dict[str, list[str]]:
    """The tree as a dictionary: top rows' keys -> keys of the tensors shown under them."""
    tree: dict[str, list[str]] = {}
    last = ""
    for row in rows:
        if isinstance(row, TensorRow) and row.depth:
            tree[last].append(row.key)
        else:
            last = row.key
            tree[last] = []
    return tree


def tree(screen: MainScreen) -> dict[str, list[str]]:
    """What the tree shows: top rows -> rows under them."""
    return rows_as_dict(screen.tree_.rows)


def text_of(app: SurgeonApp, part: str) -> str:
    """The text of a canvas of the main screen."""
    return "\n".join(plain(line) for line in app.main.query_one(f"#{part}").lines)  # type: ignore[attr-defined]


@asynccontextmanager
async def opened(
    session: Session, size: tuple[int, int] = (80, 24), config: Config | None = None
) -> AsyncIterator[tuple[SurgeonApp, Pilot[int]]]:
    """The running screen, without files of the user."""
    app = SurgeonApp(session, config or Config(), persistent=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield app, pilot


async def typed(pilot: Pilot[int], text: str) -> None:
    """Type `text` into what has the focus."""
    names = {" ": "space", "=": "equals_sign", "_": "underscore", ",": "comma", ".": "full_stop", "/": "slash"}
    names |= {"-": "minus", ":": "colon", "\\": "backslash", "(": "left_parenthesis", ")": "right_parenthesis"}
    names |= {"[": "left_square_bracket", "]": "right_square_bracket", "|": "vertical_line", ">": "greater_than_sign"}
    await pilot.press(*(names.get(letter, letter) for letter in text))
