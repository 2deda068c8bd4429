"""The config file: keys, colours, columns, llama.cpp. A mistake in it costs one notification, never the start."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surgeon.folders import config_folder
from surgeon.session.metrics import METRICS
from surgeon.tui.drawing.cells import COLUMNS, DEFAULT_COLUMNS
from surgeon.tui.keys import BY_ID


@dataclass(frozen=True)
class Config:
    """keys: action id -> keys; threads, gpu_layers, llama_lib: how llama.cpp is run (0: all processors, none);
    problems: what in the file was not understood, a line each."""

    keys: dict[str, str] = field(default_factory=dict)
    theme: str = "dark"
    ascii: bool = False
    mouse: bool = True
    columns: tuple[str, ...] = DEFAULT_COLUMNS
    metric: str = "sum"
    threads: int = 0
    gpu_layers: int = 0
    llama_lib: str | None = None
    problems: tuple[str, ...] = ()


def config_path() -> Path:
    return config_folder() / "config.toml"


def load_config(path: Path | None = None) -> Config:
    """The user's settings over the defaults; what is wrong is left out and named in `problems`."""
    path = path or config_path()
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return Config(problems=(f"{path}: {error}; using the defaults",))
    return _checked(table, path)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _checked(table: dict[str, Any], path: Path) -> Config:
    config, problems = Config(), []
    for name, value in table.pop("keys", {}).items() if isinstance(table.get("keys", {}), dict) else ():
        if name in BY_ID and isinstance(value, str):
            config = replace(config, keys={**config.keys, name: value})
        else:
            problems.append(f"{path}: keys.{name} = {value!r}: unknown action; press ? for the list")
    for name, value in table.items():
        if name in _CHECKS and _CHECKS[name](value):
            setting: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value}
            config = replace(config, **setting)
        else:
            problems.append(f"{path}: {name} = {value!r} is not valid")
    return replace(config, problems=tuple(problems))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "theme": lambda value: value in ("dark", "light"),
    "ascii": lambda value: isinstance(value, bool),
    "mouse": lambda value: isinstance(value, bool),
    "columns": lambda value: isinstance(value, list) and bool(value) and all(key in COLUMNS for key in value),
    "metric": lambda value: value in METRICS,
    "threads": _is_count,
    "gpu_layers": lambda value: _is_count(value) or value == -1,
    "llama_lib": lambda value: isinstance(value, str),
}
