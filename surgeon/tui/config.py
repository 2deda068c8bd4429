"""The config file: keys, colours, columns, llama.cpp. A mistake in it costs one notification, never the start."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surgeon.folders import config_folder
from surgeon.machine import MOST_THREADS
from surgeon.session.metrics import METRICS
from surgeon.toml_text import read_toml
from surgeon.tui.drawing.cells import COLUMNS
from surgeon.tui.drawing.spans import clean
from surgeon.tui.drawing.theme import ROLES
from surgeon.tui.keys import BY_ID

_MOST_BAD_LINES = 20


@dataclass(frozen=True)
class Config:
    """keys: action id -> keys; colours: role -> `#rrggbb`, over the theme's; columns: empty where those chosen last
    hold; threads, gpu_layers, llama_lib: how llama.cpp is run (0: all processors, none);
    scheduler: of the fleet that commands and the screen use;
    problems: what in the file was not understood, a line each."""

    keys: dict[str, str] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)
    theme: str = "dark"
    ascii: bool = False
    mouse: bool = True
    columns: tuple[str, ...] = ()
    metric: str = "sum"
    threads: int = 0
    gpu_layers: int = 0
    llama_lib: str | None = None
    scheduler: str | None = None
    problems: tuple[str, ...] = ()


def config_path() -> Path:
    return config_folder() / "config.toml"


def load_config(path: Path | None = None) -> Config:
    """The user's settings over the defaults; what is wrong is left out and named in `problems`."""
    path = path or config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        return Config(problems=(f"{path}: {error}; using the defaults",))
    table, problems = _without_bad_lines(text)
    config = _checked(table, path)
    return replace(config, problems=(*(f"{path}: {problem}" for problem in problems), *config.problems))


def _without_bad_lines(text: str) -> tuple[dict[str, Any], list[str]]:
    """What is left of a file after the lines that are not TOML, and what was wrong with them."""
    lines = text.removeprefix("\ufeff").split("\n")
    problems: list[str] = []
    for _ in range(_MOST_BAD_LINES):
        try:
            return read_toml("\n".join(lines)), problems
        except ValueError as error:
            place = re.search(r"at line (\d+)", str(error))
            # Without a place it is a number of thousands of digits, or nested as deep: the longest line.
            number = int(place[1]) - 1 if place else max(range(len(lines)), key=lambda at: len(lines[at]))
            if number >= len(lines) or not lines[number]:
                return {}, [*problems, f"{str(error)[:200]}; using the defaults"]
            problems.append(f"{str(error)[:200]}; line {number + 1} is passed over")
            lines[number] = ""
    return {}, [*problems, "too many such lines; using the defaults"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000


def _is_colour(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value) is not None


def _checked(table: dict[str, Any], path: Path) -> Config:
    config, problems = Config(), []
    for title, (is_valid, mistake) in _TABLES.items():
        if not isinstance(table.get(title, {}), dict):
            continue
        entries = table.pop(title, {})
        good: dict[str, Any] = {name: value for name, value in entries.items() if is_valid(name, value)}
        rest = [f"{title}.{clean(name):.40} = {value!r:.80}" for name, value in entries.items() if name not in good]
        problems += [f"{path}: {entry}: {mistake}; press ? for the list" for entry in rest]
        setting: dict[str, Any] = {title: good}
        config = replace(config, **setting)
    for name, value in table.items():
        if name in _CHECKS and _CHECKS[name](value):
            setting = {name: tuple(value) if isinstance(value, list) else value}
            config = replace(config, **setting)
        else:
            problems.append(f"{path}: {clean(name):.40} = {value!r:.80} is not valid")
    return replace(config, problems=tuple(problems))


_TABLES: dict[str, tuple[Callable[[str, Any], bool], str]] = {
    "keys": (lambda name, value: name in BY_ID and isinstance(value, str), "unknown action"),
    "colours": (lambda name, value: name in ROLES and _is_colour(value), 'no known role, or not "#rrggbb"'),
}
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "theme": lambda value: isinstance(value, str) and value in ("dark", "light"),
    "ascii": lambda value: isinstance(value, bool),
    "mouse": lambda value: isinstance(value, bool),
    "columns": lambda value: (
        isinstance(value, list) and bool(value) and all(isinstance(key, str) and key in COLUMNS for key in value)
    ),
    "metric": lambda value: isinstance(value, str) and value in METRICS,
    "threads": lambda value: _is_count(value) and value <= MOST_THREADS,
    "gpu_layers": lambda value: _is_count(value) or value == -1,
    "llama_lib": lambda value: isinstance(value, str),
    "scheduler": lambda value: isinstance(value, str),
}
