"""Where the scheduler is, and how llama.cpp is run on this machine: environment and config file of each machine."""

from __future__ import annotations

import os
from typing import Any

from surgeon.engine.libraries import ENVIRONMENT
from surgeon.engine.protocol import Engine
from surgeon.folders import config_folder
from surgeon.machine import MOST_THREADS
from surgeon.toml_text import read_toml

THREADS, GPU_LAYERS = "SURGEON_THREADS", "SURGEON_GPU_LAYERS"
NONE = "none"  # --scheduler none: this machine alone, whatever the config file says


def scheduler_address(given: str | None) -> str | None:
    """The address that `--scheduler` gave, else the config file's `scheduler`; None for this machine alone."""
    address = given if given is not None else _text(_config(), "scheduler")
    return None if not address or address == NONE else address


def engine_here(wanted: Engine) -> Engine:
    """How llama.cpp runs on this machine: its environment, then its config file, then what the command asked for."""
    config = _config()
    threads = wanted.threads or _number(os.environ.get(THREADS)) or _number(config.get("threads")) or 0
    layers = _number(os.environ.get(GPU_LAYERS, config.get("gpu_layers")))
    library = os.environ.get(ENVIRONMENT) or _text(config, "llama_lib")
    return Engine(library, min(threads, MOST_THREADS), wanted.n_gpu_layers if layers is None else layers)


def _config() -> dict[str, Any]:
    """The config file; one that is not there or not TOML sets nothing (the screen says what is wrong with it)."""
    try:
        return read_toml((config_folder() / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _text(config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    try:
        return None if value is None or isinstance(value, bool) else int(value)
    except (TypeError, ValueError):
        return None
