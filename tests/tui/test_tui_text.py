"""Spans, figures, colours and glyphs: what lines are made of."""

from __future__ import annotations

import ast
import dataclasses
import unicodedata
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.color import Color as TextualColor

import surgeon
from surgeon import figures
from surgeon.session.metrics import METRICS
from surgeon.session.queue import DONE, FAILED, RUNNING, WAITING, Entry
from surgeon.tui.dialogs.bench.queue_lines import entry_line
from surgeon.tui.drawing.ascii_filter import TABLE, AsciiFilter, to_ascii
from surgeon.tui.drawing.canvas import changed_region, merged
from surgeon.tui.drawing.cells import COLUMNS
from surgeon.tui.drawing.map_lines import PLAN_VIEWS
from surgeon.tui.drawing.no_colours import NoColours
from surgeon.tui.drawing.sixteen_colours import SixteenColours, table
from surgeon.tui.drawing.spans import clean, cut, elide_start, fit, flow, plain, spread, width_of, wrap
from surgeon.tui.drawing.theme import DARK, LIGHT, ROLES, Palette, palette_of, styles, xterm
from surgeon.tui.terminal import BurstParser


@pytest.mark.parametrize(
    ("text", "width", "align", "shown"),
    [
        ("ab", 4, "left", "ab  "),
        ("ab", 4, "right", "  ab"),
        ("abcdef", 4, "left", "abc…"),
        ("ab", 2, "left", "ab"),
        ("ab", 0, "left", ""),
        ("層層層", 5, "left", "層層…"),
        ("層", 4, "right", "  層"),
    ],
)
def test_fit_fills_exactly(text: str, width: int, align: str, shown: str) -> None:
    assert fit(text, width, align) == shown
    assert cell_len(fit(text, width, align)) == max(width, 0)


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert clean("blk\x1b[31m\x07\x9b.weight\n") == r"blk\x1b[31m\x07\x9b.weight\n"


def test_cut_and_spread_keep_the_width() -> None:
    line = [("abc", "text"), ("defgh", "muted")]
    assert plain(cut(line, 5)) == "abcd…"
    assert cut(line, 8) == line
    assert plain(spread(line, [("right", "")], 14)) == "abcdefgh right"
    assert plain(spread(line, [("right", "")], 10)) == "abc… right"
    for width in range(1, 20):
        assert width_of(spread(line, [("right", "")], width)) <= max(width, 5)


def test_wrap_breaks_at_blanks() -> None:
    assert [plain(line) for line in wrap("why: mix rule use_more_bits (layer 25)", 16, "", "  ")] == [
        "why: mix rule",
        "  use_more_bits",
        "  (layer 25)",
    ]


def test_the_end_of_a_path_is_kept() -> None:
    assert elide_start("/models/gemma/model.gguf", 12) == "…/model.gguf"
    assert elide_start("model.gguf", 12) == "model.gguf"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1020, "1.02 kB"), (23_229_440, "23.2 MB"), (826e6, "826 MB"), (1.18e10, "11.8 GB")],
)
def test_sizes_have_three_figures(nbytes: float, text: str) -> None:
    assert figures.size(nbytes) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (512 << 20, "512 MiB"),
        (24 << 30, "24.0 GiB"),
        (24e9, "22.4 GiB"),
        (-3e6, "-2.86 MiB"),
    ],
)
def test_memory_is_written_in_binary_units(nbytes: float, text: str) -> None:
    assert figures.memory(nbytes) == text


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.00123, 0.5, 1.0, 9.99, 123.456, 44706.0, 1234567.0, 1e30, -0.25])
def test_statistics_take_at_most_eight_cells(value: float) -> None:
    text = figures.figure(value)
    assert len(text) <= 8
    assert float(text) == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (189, "3:09"), (3720, "1:02:00")])
def test_durations(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


def test_bars_never_vanish_and_never_overflow() -> None:
    assert figures.bar(0.0, 4).strip() == "╸"
    assert figures.bar(1.0, 4) == "━━━━"
    assert figures.bar(7.0, 4) == "━━━━"
    assert [figures.level(part) for part in (0.0, 0.5, 1.0)] == ["▁", "▅", "█"]


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_every_colour_survives_256_colours(palette: Palette) -> None:
    colours = [*(getattr(palette, role) for role in ROLES if not role.startswith("ramp")), *palette.ramp]
    assert len(colours) == len(ROLES)
    numbers = [Color.parse(colour).downgrade(ColorSystem.EIGHT_BIT).number for colour in colours]
    assert numbers == [_number(colour) for colour in colours]


def _number(colour: str) -> int:
    """The number of a colour of the xterm table."""
    return next(number for number in range(16, 256) if xterm(number) == colour)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_everything_can_be_read_on_every_ground(palette: Palette) -> None:
    for name in ("muted", "faint", "text", "strong", "accent", "changed", "pruned", "warning"):
        for ground in (palette.background, palette.panel, palette.raised, palette.cursor):
            assert contrast(getattr(palette, name), ground) >= 3, (name, ground)
    assert all(contrast(step, palette.background) >= 3 for step in palette.ramp)


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_sixteen_colours_hide_nothing(palette: Palette) -> None:
    numbers = table(palette)
    grounds = {numbers[getattr(palette, name)] for name in ("background", "panel", "raised")}
    words = [getattr(palette, name) for name in ("muted", "faint", "text", "strong", "accent", "pruned")]
    assert not grounds & {numbers[colour] for colour in words}
    assert 8 not in numbers.values(), "bright black is the background of some terminals"
    style = Style(color=palette.faint, bgcolor=palette.background, bold=True)
    (segment,) = SixteenColours(palette).apply([Segment("a", style)], TextualColor.parse("black"))
    assert segment.style is not None
    assert (segment.style.color, segment.style.bold) == (Color.from_ansi(numbers[palette.faint]), True)


@pytest.mark.parametrize("name", ["dark", "light"])
def test_sixteen_colours_hide_nothing_of_the_users_either(name: str) -> None:
    """Not where all colours are new, nor where a text has the colour of a ground."""
    palette = LIGHT if name == "light" else DARK
    own = palette_of(name, {role: f"#0000{place:02x}" for place, role in enumerate(ROLES)})
    for field in dataclasses.fields(palette):
        if field.name in ROLES:
            assert table(own)[getattr(own, field.name)] == table(palette)[getattr(palette, field.name)], field.name
    same = palette_of(name, {"background": "#101010", "cursor_text": "#101010"})
    style = Style(color=same.cursor_text, bgcolor=same.background)
    (segment,) = SixteenColours(same).apply([Segment("a", style)], TextualColor.parse("black"))
    assert segment.style is not None
    numbers = table(palette)
    assert segment.style.color == Color.from_ansi(numbers[palette.cursor_text])
    assert segment.style.bgcolor == Color.from_ansi(numbers[palette.background])


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_without_colours_grounds_are_reversed_and_faint_text_is_dim(palette: Palette) -> None:
    known = styles(palette)
    names = ("text", "faint", "strong", "strip-scope", "map-here", "map-range")
    segments = NoColours(palette).apply([Segment("a", known[name]) for name in names], TextualColor.parse("black"))
    found = [segment.style for segment in segments]
    assert all(style is not None and style.color is None and style.bgcolor is None for style in found)
    wanted = ["none", "dim", "bold", "bold reverse", "bold reverse", "underline"]
    assert [" ".join(sorted(str(style).split())) for style in found] == wanted


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_red_is_for_pruned_and_failed_only(palette: Palette) -> None:
    others = [palette.text, palette.muted, palette.accent, palette.changed, palette.warning, *palette.ramp]
    assert palette.pruned not in others


def test_ascii_signs_are_ascii_and_of_the_same_width() -> None:
    for sign, other in TABLE.items():
        assert len(chr(other) if isinstance(other, int) else other) == 1
        assert cell_len(chr(sign)) == 1
    assert to_ascii("▸ blk.7 → 6  ✗ Σ(Bias) ▁▅█ ━━╸ × – …").isascii()


def test_states_of_the_queue_differ_in_ascii() -> None:
    lines = [
        plain(entry_line(Entry("write", "a", state=state), 1, "", 80)) for state in (WAITING, RUNNING, DONE, FAILED)
    ]
    assert len({to_ascii(line).split()[1] for line in lines}) == 4


def test_every_sign_in_the_source_of_the_screen_has_an_ascii_one() -> None:
    """Literals of all modules that the screen may show; what only a terminal would obey is never shown."""
    package = Path(surgeon.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.is_relative_to(package / "commands") or path.name == "ascii_filter.py":
            continue  # print without the screen; has the signs themselves
        for text in literals(path):
            left = {sign for sign in to_ascii(text) if not sign.isascii() and unicodedata.category(sign)[0] != "C"}
            assert not left - UNSEEN, f"{path}: {text!r}"


UNSEEN = {
    "𝜌",  # a heading of the card
    "\N{LINE SEPARATOR}",  # what terminals break lines at, in the filter of hostile text
}


def literals(path: Path) -> list[str]:
    """Every string of a module but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [str(node.value) for node in texts if id(node) not in alone]


@pytest.mark.parametrize(
    ("bursts", "keys"),
    [
        (["\x1b:a"], "escape colon a"),
        (["\x1b\x1b:a"], "escape escape colon a"),
        (["a\x1b", ":b"], "a escape colon b"),
        (["a\x1b", "[Ab"], "a up b"),
        (["\x1b[A\x1b[B"], "up down"),
        (["\x1b\x1b[A"], "escape up"),
        (["\x1bOP" + "x" * 3], "f1 x x x"),
        (["\x1b" + "x" * 40], "escape" + " x" * 40),
    ],
)
def test_escape_and_a_key_in_one_burst_are_two_keys(bursts: list[str], keys: str) -> None:
    parser = BurstParser()
    found = [message for burst in bursts for message in parser.feed(burst)]
    assert " ".join(key.key for key in found if isinstance(key, events.Key)) == keys


def test_what_is_pasted_is_no_key() -> None:
    parser = BurstParser()
    found = [*parser.feed("\x1b[200~one\x1b:two\nthree\x1b[201~"), *parser.feed("x")]
    texts = [message.text for message in found if isinstance(message, events.Paste)]
    assert [text.replace("\x1b", "") for text in texts] == ["one:two\nthree"]
    assert [message.key for message in found if isinstance(message, events.Key)] == ["x"]


def test_words_on_columns_and_views_fit_a_line_of_80_cells() -> None:
    """Beside a name of 13 cells, in a frame with a scroll bar."""
    helps = [*(column.help for column in COLUMNS.values()), *(view.help for view in PLAN_VIEWS)]
    assert [text for text in [*helps, *(metric.help for metric in METRICS.values())] if len(text) > 59] == []


def test_items_flow_into_lines_and_none_is_torn() -> None:
    lines = flow(([(word, ""), ("  ", "")] for word in ("alpha", "beta", "gamma", "delta")), 14)
    assert [plain(line) for line in lines] == ["alpha  beta  ", "gamma  delta  "]
    assert flow([], 10) == []


def test_the_ends_of_scroll_bars_are_no_signs_in_ascii() -> None:
    grip, text = Style(meta={"@mouse.down": "grab"}), Style(bold=True)
    made = AsciiFilter().apply([Segment("▆", grip), Segment("▆", text), Segment("▆")], TextualColor.parse("black"))
    assert [segment.text for segment in made] == [" ", "*", "*"]


def test_keys_in_a_frame_fit_80_cells() -> None:
    """Six of them are the frame's own."""
    found = [
        node.value
        for path in (Path(surgeon.__file__).parent / "tui").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" · ") > 2
    ]
    assert len(found) > 10
    assert [text for text in found if len(text) > 74 and not text.endswith(WIDE)] == []


WIDE = ("· u undo · Esc close", "· filtered")  # shown where there are more cells; no keys


def test_the_ascii_filter_leaves_names_alone() -> None:
    segments = AsciiFilter().apply([Segment("│ modèle ▾")], TextualColor.parse("black"))
    assert [segment.text for segment in segments] == ["| modèle -"]


def test_only_changed_cells_are_drawn_again() -> None:
    old = [("ab", ""), ("cd", "accent"), ("ef", "")]
    assert changed_region(old, list(old), 3, 80) is None
    region = changed_region(old, [("ab", ""), ("XY", "accent"), ("ef", "")], 3, 80)
    assert region is not None
    assert (region.x, region.y, region.width) == (2, 3, 2)
    longer = changed_region(old, [("ab", ""), ("cd", "accent"), ("efgh", "")], 0, 80)
    assert longer is not None
    assert (longer.x, longer.width) == (4, 76)


def test_blanks_are_merged_into_the_role_before_them() -> None:
    assert merged([("a", "text"), ("  ", ""), ("b", "text"), ("", "muted"), ("c", "muted")]) == [
        ("a  b", "text"),
        ("c", "muted"),
    ]


def test_a_blank_under_the_cursor_keeps_its_ground() -> None:
    line = [("0 ", "strong"), (" ", "map-here"), ("  ", "ramp3")]
    assert merged(line) == line
