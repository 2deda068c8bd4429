"""Pictures of the screen: few, for looks only; what the tree holds is tested elsewhere.

After a wanted change: pytest tests/tui/test_tui_snapshots.py --snapshot-update, and look at the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tui_helpers import session_of

from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config

SnapCompare = Callable[..., bool]


@pytest.fixture
def app(demo_model: Path, demo_imatrix: Path) -> SurgeonApp:
    """The bundled model under a plan that shows every kind of row."""
    session = session_of(demo_model, demo_imatrix)
    session.set_file_type("Q4_K_M")
    session.add_rule("attn_v=q8_0")
    session.toggle_prune([2])
    return SurgeonApp(session, Config(), persistent=False)


def test_80x24(app: SurgeonApp, snap_compare: SnapCompare) -> None:
    assert snap_compare(app, terminal_size=(80, 24), press=["J", "J", "J", "l", "j", "j"])


def test_140x45(app: SurgeonApp, snap_compare: SnapCompare) -> None:
    assert snap_compare(app, terminal_size=(140, 45), press=["J", "l", "j", "j", "space", "right_square_bracket"])


def test_200x60_light(demo_model: Path, demo_imatrix: Path, snap_compare: SnapCompare) -> None:
    session = session_of(demo_model, demo_imatrix)
    session.set_file_type("Q5_K_S")
    app = SurgeonApp(session, Config(theme="light"), persistent=False)
    assert snap_compare(app, terminal_size=(200, 60), press=["l"])


def test_filter_prompt(app: SurgeonApp, snap_compare: SnapCompare) -> None:
    async def still(pilot: Any) -> None:
        await pilot.press("slash", "c", "o", "s", "greater_than_sign", "0", "full_stop", "9", "5")
        for cursor in pilot.app.screen.query("Input"):
            cursor.cursor_blink = False

    assert snap_compare(app, terminal_size=(80, 24), run_before=still)


def test_256_colours_are_what_is_drawn(app: SurgeonApp, snap_compare: SnapCompare, monkeypatch: Any) -> None:
    """The same picture reduced to the xterm table by Rich: it must be the one of `test_80x24`."""
    from rich.color import Color, ColorSystem
    from rich.segment import Segment
    from rich.style import Style
    from textual.filter import LineFilter

    class Reduced(LineFilter):
        def apply(self, segments: list[Segment], background: Any) -> list[Segment]:
            return [Segment(text, self.reduced(style), control) for text, style, control in segments]

        def reduced(self, style: Style | None) -> Style | None:
            if style is None:
                return None
            colours = [colour and self.of_table(colour) for colour in (style.color, style.bgcolor)]
            return style + Style(color=colours[0], bgcolor=colours[1])

        def of_table(self, colour: Color) -> Color:
            return Color.from_triplet(colour.downgrade(ColorSystem.EIGHT_BIT).get_truecolor())

    app.ascii_filter = Reduced()
    assert snap_compare(app, terminal_size=(80, 24), press=["J", "J", "J", "l", "j", "j"])
