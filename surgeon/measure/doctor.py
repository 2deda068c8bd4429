"""What this machine can do for surgeon, looked at and not changed: one section of facts after the other."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import surgeon_kernels
from surgeon import __version__, folders
from surgeon.engine.client import EngineRun
from surgeon.engine.protocol import DevicesJob, Engine, Finished
from surgeon.errors import SurgeonError
from surgeon.machine import available_cores
from surgeon.write import array_module
from surgeon.write.array_module import MODULES


@dataclass(frozen=True)
class Section:
    """Facts of one kind. problem: one line when something is missing, with what to do."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def examine(engine: Engine) -> list[Section]:
    """All sections; what cannot be found out is a problem of its section and no error."""
    return [_program(), _processor(), _kernels(), _llama_cpp(engine), _array_module(), _folders(), _terminal()]


def _program() -> Section:
    return Section(
        "program", {"surgeon": __version__, "python": platform.python_version(), "system": platform.platform()}
    )


def _processor() -> Section:
    from llvmlite import binding

    features = [name for name, there in binding.get_host_cpu_features().items() if there]
    vectors = [name for name in ("avx512f", "avx2", "avx", "neon") if name in features]
    facts = {"model": _processor_name(), "code": binding.get_host_cpu_name(), "vectors": vectors[:1] or ["none"]}
    return Section("processor", {**facts, "cores": available_cores()})


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _kernels() -> Section:
    folder = surgeon_kernels.cache_directory()
    if folder is None:
        return Section("kernels", problem="no writable folder to keep compiled kernels in: set SURGEON_CACHE_DIR")
    compiled = len(list(folder.glob("*.nbi"))) if folder.is_dir() else 0
    return Section("kernels", {"folder": str(folder), "compiled": compiled, "types": len(surgeon_kernels.quantizable)})


def _llama_cpp(engine: Engine) -> Section:
    try:
        for message in EngineRun(engine, DevicesJob()).messages():
            if isinstance(message, Finished):
                return Section("llama.cpp", dict(message.values))
    except SurgeonError as error:
        return Section("llama.cpp", problem=str(error))
    return Section("llama.cpp", problem="the engine gave no answer")


def _array_module() -> Section:
    installed = [name for name in MODULES if importlib.util.find_spec(name) is not None]
    device = array_module.found()
    return Section("array module", {"installed": [*installed, "numpy"], "used": device.name if device else "numpy"})


def _folders() -> Section:
    facts: dict[str, Any] = {}
    problem = ""
    for name, find in (("state", folders.state_folder), ("logs", folders.log_folder), ("cache", folders.cache_folder)):
        try:
            folder = find()
        except SurgeonError as error:
            problem = str(error)
            continue
        facts[name] = {"folder": str(folder), "free": shutil.disk_usage(folder).free}
    return Section("folders", facts, problem)


def _terminal() -> Section:
    if not sys.stdout.isatty():
        return Section("terminal", {"tty": False})
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    facts = {"tty": True, "term": os.environ.get("TERM", ""), "size": f"{columns}x{lines}"}
    encoding = sys.stdout.encoding or ""
    plain = "" if encoding.lower().replace("-", "") == "utf8" else f"{encoding or 'no'} encoding: use --ascii"
    return Section("terminal", {**facts, "encoding": encoding, "tmux": "TMUX" in os.environ}, plain)
