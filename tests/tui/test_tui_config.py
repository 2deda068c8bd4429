"""The config file, and what the command line puts before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tui_helpers import opened, session_of

from surgeon.commands import open as open_command
from surgeon.engine.protocol import Engine
from surgeon.session.session import Session
from surgeon.tui.answers import remember
from surgeon.tui.app import SurgeonApp
from surgeon.tui.config import Config, config_path, load_config
from surgeon.tui.drawing.cells import DEFAULT_COLUMNS
from surgeon.tui.drawing.theme import DARK, LIGHT

_WHOLE = """
theme = "light"
ascii = true
mouse = false
columns = ["type", "size", "h"]
metric = "h"
threads = 6
gpu_layers = 99
llama_lib = "/opt/llama.cpp/build/bin"

[keys]
prune = "x,f5"

[colours]
accent = "#5FD7AF"
ramp4 = "#ffffff"
"""


def _written(text: str) -> Config:
    config_path().parent.mkdir(parents=True)
    config_path().write_text(text, encoding="utf-8")
    return load_config()


def test_without_a_file_the_defaults() -> None:
    assert load_config() == Config()


def test_everything_that_can_be_set() -> None:
    assert _written(_WHOLE) == Config(
        keys={"prune": "x,f5"}, theme="light", ascii=True, mouse=False, columns=("type", "size", "h"), metric="h",
        threads=6, gpu_layers=99, llama_lib="/opt/llama.cpp/build/bin",
        colours={"accent": "#5FD7AF", "ramp4": "#ffffff"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ['theme = "blue"', "ascii = 1", "columns = []", 'columns = ["none"]', 'metric = "x"', "threads = -1",
     "threads = true", "gpu_layers = -2", 'gpu_layers = "all"', "llama_lib = 3", "colour = 3", "keys.prune = 3",
     "colours = 3", 'colours.name = "#000000"', 'colours.accent = "red"', 'colours.accent = "#12345"',
     "colours.accent = 3"],
)  # fmt: skip
def test_a_mistake_is_named_and_the_rest_holds(line: str) -> None:
    config = _written(f'{line}\nkeys.write = "f2"\n')
    assert len(config.problems) == 1
    assert str(config_path()) in config.problems[0]
    assert line.split(" = ")[0] in config.problems[0]
    assert config == Config(keys={"write": "f2"}, problems=config.problems)


def test_each_mistake_is_one_line() -> None:
    config = _written('"a\\nb" = 1\n[keys]\n"c\\nd" = "x"\n[colours]\n"e\\nf" = "#000000"\n')
    assert len(config.problems) == 3
    assert all("\n" not in problem for problem in config.problems)


def test_what_is_no_toml_costs_one_line() -> None:
    (problem,) = _written("theme = \n").problems
    assert str(config_path()) in problem
    assert problem.endswith("line 1 is passed over")


def test_the_command_line_goes_before_the_file(monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> None:
    _written(_WHOLE)
    seen: list[Config] = []

    class App:
        return_code = 0

        def __init__(self, session: Session, config: Config, **rest: Any) -> None:
            seen.append(config)

        def run(self, **rest: Any) -> int:
            return 0

    monkeypatch.setattr("surgeon.tui.app.SurgeonApp", App)
    monkeypatch.setattr(open_command, "require_terminal", lambda _what: None)
    assert open_command.main([str(demo_model), "--dark", "-t", "2", "-ngl", "0", "--llama-lib", "build"]) == 0
    assert open_command.main([str(demo_model)]) == 0
    given, plain = seen
    assert plain == load_config()
    assert (given.theme, given.threads, given.gpu_layers, given.llama_lib) == ("dark", 2, 0, "build")
    assert (given.ascii, given.columns) == (plain.ascii, plain.columns)


async def test_llama_cpp_is_run_as_it_is_set(demo_model: Path) -> None:
    config = Config(threads=3, gpu_layers=99, llama_lib="/no/such/build")
    async with opened(session_of(demo_model), (130, 30), config=config) as (app, pilot):
        assert app.main.engine == Engine("/no/such/build", 3, 99)
        for key in "eIS":
            app.main.unsay()
            await pilot.press(key)
            assert app.screen is app.main
            assert "/no/such/build: no such directory" in app.main.message


async def test_own_colours_are_painted_over_those_of_the_theme(demo_model: Path) -> None:
    colours = {"background": "#010203", "muted": "#040506", "accent": "#0A0B0C"}
    for theme, palette in (("dark", DARK), ("light", LIGHT)):
        async with opened(session_of(demo_model), config=Config(theme=theme, colours=colours)) as (app, pilot):
            assert {"#010203", "#040506", "#0a0b0c", palette.panel, palette.text} <= painted(app)
            assert not {palette.background, palette.muted, palette.accent} & painted(app)
            await pilot.press("c")
            assert app.screen is not app.main
            assert {"#040506", "#0a0b0c"} <= painted(app)
            assert palette.muted not in painted(app)


def painted(app: SurgeonApp) -> set[str]:
    """The colours on the screen, `#rrggbb`."""
    styles = [part.style for strip in app.screen._compositor.render_strips() for part in strip if part.style]
    colours = [colour for style in styles for colour in (style.color, style.bgcolor)]
    return {colour.triplet.hex for colour in colours if colour is not None and colour.triplet is not None}


async def test_chosen_columns_come_back(model_copy: Path, demo_model: Path) -> None:
    async with opened(session_of(model_copy)) as (app, pilot):
        assert app.main.tree_.columns == DEFAULT_COLUMNS
        await pilot.press("c", *"before", "space", "enter")
        chosen = app.main.tree_.columns
        assert chosen == (*DEFAULT_COLUMNS, "before")
        await pilot.press("c", *"shape", "space", "escape")
    for model in (model_copy, demo_model):
        async with opened(session_of(model)) as (app, _):
            assert app.main.tree_.columns == chosen
    async with opened(session_of(model_copy), config=Config(columns=("type", "h"))) as (app, _):
        assert app.main.tree_.columns == ("type", "h")


async def test_kept_columns_that_are_not_known_are_left_out(demo_model: Path) -> None:
    for kept, shown in (("size gone type size", ("size", "type")), ("gone", DEFAULT_COLUMNS)):
        remember(demo_model, "columns", {"shown": kept})
        async with opened(session_of(demo_model)) as (app, _):
            assert app.main.tree_.columns == shown
