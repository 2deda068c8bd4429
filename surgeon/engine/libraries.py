"""Which llama.cpp is used: a directory the user names, the xllamacpp wheel, or llama-cpp-python.

Nothing is imported or loaded here: only file names are looked at.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from surgeon.engine.errors import INSTALL, EngineMissing

ENVIRONMENT = "LLAMA_CPP_LIB_DIR"
_SUFFIXES = (".dylib",) if sys.platform == "darwin" else (".so",)
_BELOW = ("", "lib", "lib64", "bin", "build/bin", "build/lib")


@dataclass(frozen=True, slots=True)
class Libraries:
    """The shared objects of one llama.cpp build.

    llama, ggml, ggml_base: may be one and the same file (xllamacpp links everything into its extension module).
    backends: the directory whose `libggml-cpu-*.so` and GPU back ends are loaded at run time, or None.
    label: how the build is called in reports, with the wheel's version (its last part is llama.cpp's build number).
    """

    llama: Path
    ggml: Path
    ggml_base: Path
    backends: Path | None
    label: str


def find_libraries(directory: str | None = None) -> Libraries:
    """The llama.cpp to use: `directory`, else $LLAMA_CPP_LIB_DIR, else an installed package.

    Raises EngineMissing naming what was looked for and how to get it.
    """
    named = directory or os.environ.get(ENVIRONMENT)
    if named:
        return _in_directory(Path(named).expanduser())
    for package, below in (("xllamacpp", "."), ("llama_cpp", "lib")):
        folder = _package_folder(package)
        if folder is not None and (found := _look_into(folder / below, _label(package))) is not None:
            return found
    raise EngineMissing(f"no llama.cpp here: {INSTALL}, or use --llama-lib DIR; surgeon doctor shows what is here")


def _in_directory(directory: Path) -> Libraries:
    if not directory.is_dir():
        raise EngineMissing(f"{directory}: no such directory (--llama-lib or ${ENVIRONMENT} names a llama.cpp build)")
    for below in _BELOW:
        if (found := _look_into(directory / below, str(directory))) is not None:
            return found
    raise EngineMissing(
        f"{directory}: no libllama with libggml and libggml-base there; build llama.cpp with "
        f"-DBUILD_SHARED_LIBS=ON, or leave the option away and {INSTALL}"
    )


def _look_into(folder: Path, label: str) -> Libraries | None:
    wheel = _one(folder, "xllamacpp")
    if wheel is not None:
        return Libraries(wheel, wheel, wheel, None, label)
    llama, ggml, base = (_one(folder, stem) for stem in ("libllama", "libggml", "libggml-base"))
    if llama is None or ggml is None or base is None:
        return None
    separate = any(folder.glob("libggml-cpu*")) or any(folder.glob("libggml-cuda*"))
    return Libraries(llama, ggml, base, folder if separate else None, label)


def _one(folder: Path, stem: str) -> Path | None:
    """`libllama.so`, or with a version in the name (`libllama.so.0`, `libllama.v0.5.0.so`); the shortest wins."""
    if not folder.is_dir():
        return None
    names = [
        path
        for path in folder.iterdir()
        if path.name.startswith(f"{stem}.") and any(suffix in path.name for suffix in _SUFFIXES)
    ]
    return min(names, key=lambda path: (len(path.name), path.name), default=None)


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _label(package: str) -> str:
    try:
        return f"{package} {version(package.replace('llama_cpp', 'llama_cpp_python'))}"
    except PackageNotFoundError:
        return package
