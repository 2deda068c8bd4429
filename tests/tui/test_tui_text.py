"""Spans, figures, colours and glyphs: what lines are made of."""

from __future__ import annotations

import dataclasses

import pytest
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.segment import Segment
from textual.color import Color as TextualColor

from surgeon import figures
from surgeon.tui.drawing.ascii_filter import TABLE, AsciiFilter, to_ascii
from surgeon.tui.drawing.canvas import changed_region, merged
from surgeon.tui.drawing.spans import clean, cut, elide_start, fit, plain, spread, width_of, wrap
from surgeon.tui.drawing.theme import DARK, LIGHT, Palette, xterm


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
    assert clean("blk\x1b[31m\x07\x9b.weight\n") == "blk [31m  .weight "


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
    for field in dataclasses.fields(palette):
        value = getattr(palette, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, int) and not isinstance(number, bool):
                assert Color.parse(xterm(number)).downgrade(ColorSystem.EIGHT_BIT).number == number, field.name


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_red_is_for_pruned_and_failed_only(palette: Palette) -> None:
    others = [palette.text, palette.muted, palette.accent, palette.changed, palette.warning, *palette.ramp]
    assert palette.pruned not in others


def test_ascii_signs_are_ascii_and_of_the_same_width() -> None:
    for sign, other in TABLE.items():
        assert len(chr(other) if isinstance(other, int) else other) == 1
        assert cell_len(chr(sign)) == 1
    assert to_ascii("▸ blk.7 → 6  ✗ Σ(Bias) ▁▅█ ━━╸ × – …").isascii()


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
