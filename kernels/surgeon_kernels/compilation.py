"""Compiled kernels: when they compile, and where the machine code is kept.

A kernel compiles once per user, processor and version of this package. Numba's own cache does not notice a change in
a helper of another file, so the folder is named by a hash of every source of the package, and a changed source means
a new folder. Numba adds the processor and the signature to its key.

`cache_folders` chooses the folder; where nothing can be written, kernels compile anew in each process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import numba
import numpy as np
from llvmlite import __version__ as llvmlite_version
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from .cache_folders import distrusted, make_private, remove_distrusted, root

_UNUSED_SECONDS = 30 * 86400

OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": False}

_READ_F32 = types.Array(types.float32, 1, "C", readonly=True)
_READ_U8 = types.Array(types.uint8, 1, "C", readonly=True)
_WRITE_F32 = types.Array(types.float32, 1, "C")
_WRITE_U8 = types.Array(types.uint8, 1, "C")

# quantize(x, columns, weights, compat, out)
QUANTIZE = types.void(_READ_F32, types.int64, _READ_F32, types.boolean, _WRITE_U8)
# dequantize(blocks, out)
DEQUANTIZE = types.void(_READ_U8, _WRITE_F32)


@cache
def source_hash() -> str:
    """A hash over every source file of the package and the versions of the compiler."""
    digest = hashlib.sha256(f"{sys.version}|{numba.__version__}|{llvmlite_version}".encode())
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_directory() -> Path | None:
    """The folder that holds the compiled kernels of this version; None where nothing can be written and trusted."""
    folder = root()
    if folder is None:
        return None
    folder = folder / source_hash()
    return None if folder.exists() and distrusted(folder) else folder


def clear_cache() -> int:
    """Remove the compiled kernels of all versions; returns how many bytes were freed."""
    everything = root()
    if everything is None or not everything.exists():
        return 0
    freed = sum(path.stat().st_size for path in everything.rglob("*") if path.is_file())
    for folder in everything.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    return freed


def _remove_unused(everything: Path) -> None:
    """Remove the folders of versions that no process has used for a month."""
    for folder in everything.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it too
            used = max((lock.stat().st_mtime for lock in folder.glob("*lock")), default=time.time())
            if time.time() - used > _UNUSED_SECONDS:
                shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: Path, name: str, wait: bool) -> Iterator[bool]:
    """Hold the lock of one kernel: of two processes that need it at once, the second waits and then loads.

    Not `wait`: gives False, and holds nothing, where another process has the lock.
    """
    if not folder.exists():
        make_private(folder)
        _remove_unused(folder.parent)
    path = folder / f"{name}.lock"
    with open(path, "a+b") as file:
        os.utime(path)
        yield _lock(file, wait)  # closing the file releases the lock


def _lock(file: IO[bytes], wait: bool) -> bool:
    if sys.platform == "win32":
        import msvcrt

        while True:
            file.seek(0)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


class _Locator(_CacheLocator):
    """Tells numba where to keep a kernel: in the folder of this version."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_cache_path(self) -> str:
        return str(cache_directory())

    def get_source_stamp(self) -> str:
        return source_hash()

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> _Locator:
        return cls(Path(path).stem)


class _CacheFiles(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _KernelCache(FunctionCache):
    _impl_class = _CacheFiles

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None; a damaged file counts as absent, whatever its reader trips over.

        A file that another user could have written is removed unread.
        """
        try:
            if remove_distrusted(self._files()):
                self.flush()
                return None
            return super().load_overload(sig, target_context)
        except Exception:
            self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)
        for path in self._files():
            path.chmod(0o600)  # numba writes them as the umask says

    def _files(self) -> list[Path]:
        """The index and the machine code of this kernel."""
        index = Path(self._cache_file._index_path)
        return [path for path in index.parent.iterdir() if path.name.startswith(index.stem)]


class Kernel:
    """A function that compiles, or loads from the cache, on its first call, for one signature only.

    Arguments of other types raise TypeError instead of compiling a second version in the middle of a write.
    """

    _compiling = threading.Lock()

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.function = function
        self.signature = signature
        self.__doc__ = function.__doc__
        self._compiled: Any = None

    @property
    def name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    @property
    def is_kept(self) -> bool:
        """Whether the cache has this kernel, of whatever processor."""
        folder = cache_directory()
        return folder is not None and any(folder.glob(f"{self.name}-*.nbi"))

    def compile(self, *, wait: bool = True) -> Any:
        """Make the kernel callable now; returns the compiled function. Safe from several threads and processes.

        Not `wait`: returns None, and nothing is done, while another process compiles it.
        """
        with Kernel._compiling:
            if self._compiled is None:
                self._compiled = self._compile(wait)
        return self._compiled

    def _compile(self, wait: bool) -> Any:
        dispatcher = numba.njit(**OPTIONS)(self.function)
        folder = cache_directory()
        try:
            if folder is None:
                dispatcher.compile(self.signature)
            else:
                with _locked(folder, self.name, wait) as locked:
                    if not locked:
                        return None
                    dispatcher._cache = _KernelCache(self.function)
                    dispatcher.compile(self.signature)
        except OSError:  # the folder vanished or filled up meanwhile: the kernel does not depend on it
            dispatcher = numba.njit(**OPTIONS)(self.function)
            dispatcher.compile(self.signature)
        dispatcher.disable_compile()
        return dispatcher

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compile())(*arguments)


def kernel(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: a kernel of this signature, compiled on first use and cached."""
    return lambda function: Kernel(function, signature)


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a function that kernels call; compiled into each of them, never on its own."""
    compiled: Callable[..., Any] = numba.njit(**OPTIONS)(_named_by_content(function))
    return compiled


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a `helper` whose code goes into the caller; for inner loops with many arguments and one caller."""
    compiled: Callable[..., Any] = numba.njit(forceinline=True, **OPTIONS)(_named_by_content(function))
    return compiled


def _named_by_content(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function made inside another gets a hash of the variables it closes over into its name.

    Numba tells functions of one name apart by a number that counts in each process, and LLVM takes two functions of
    one name, in the machine code of two kernels, for the same. So kernels compiled by different processes would call
    each other's `make_search.<locals>.search`.
    """
    if function.__closure__:
        content = "|".join(_content(cell.cell_contents) for cell in function.__closure__)
        function.__qualname__ += f"_{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    return function


def _content(value: Any) -> str:
    """A closed-over variable in words that are the same in every process. Raises TypeError where there are none."""
    if hasattr(value, "py_func"):
        return f"{value.py_func.__module__}.{value.py_func.__qualname__}"
    if isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value)
    raise TypeError(f"{type(value).__name__}: a helper may close over numbers, strings and helpers only")
