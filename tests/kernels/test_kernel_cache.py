"""Where compiled kernels are kept, and what happens when that is impossible. Each case is a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden_blocks import RECORD, key

import surgeon_kernels

_PACKAGE = Path(surgeon_kernels.__file__).parent
_QUANTIZE = """
import numpy as np, surgeon_kernels
rows = np.arange(64, dtype=np.float32).reshape(2, 32)
print(surgeon_kernels.quantize(rows, "BF16").tobytes().hex())
print(surgeon_kernels.cache_directory())
"""


def _run(code: str, *, packages: Path = _PACKAGE.parent, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("SURGEON_CACHE_DIR", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": str(packages), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _compiled(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*.nbc")}


def test_second_process_compiles_nothing(tmp_path: Path) -> None:
    first = _run(_QUANTIZE, SURGEON_CACHE_DIR=str(tmp_path))
    kept = _compiled(tmp_path)
    assert len(kept) == 2  # quantize, and the check for NaN
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in kept}
    assert _run(_QUANTIZE, SURGEON_CACHE_DIR=str(tmp_path)) == first
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in _compiled(tmp_path)} == times


def test_a_changed_helper_in_another_file_recompiles(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    shutil.copytree(_PACKAGE, packages / "surgeon_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    before = _run(_QUANTIZE, packages=packages, SURGEON_CACHE_DIR=cache)
    lanes = packages / "surgeon_kernels" / "lanes" / "memory.py"
    source = lanes.read_text()
    assert "load_f32 = _loader(FLOAT, (types.float32,), f32, lambda builder, v: v)" in source
    lanes.write_text(source.replace(
        "load_f32 = _loader(FLOAT, (types.float32,), f32, lambda builder, v: v)",
        "load_f32 = _loader(FLOAT, (types.float32,), f32, lambda builder, v: builder.fneg(v))",
    ))  # fmt: skip
    after = _run(_QUANTIZE, packages=packages, SURGEON_CACHE_DIR=cache)
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_two_processes_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "SURGEON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(_PACKAGE.parent)}
    running = [
        subprocess.Popen([sys.executable, "-c", _QUANTIZE], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len(set(outputs)) == 1
    assert len(_compiled(tmp_path)) == 2


def test_read_only_install(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    shutil.copytree(_PACKAGE, packages / "surgeon_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    folder = packages / "surgeon_kernels"
    folder.chmod(0o555)
    try:
        _, cache = _run(_QUANTIZE, packages=packages, SURGEON_CACHE_DIR=str(tmp_path / "cache"))
        assert Path(cache).is_relative_to(tmp_path / "cache")
        assert not list(folder.rglob("*.nbi"))
    finally:
        folder.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="the home directory of Windows is not in the environment alone")
def test_no_home_directory(tmp_path: Path) -> None:
    _, cache = _run(_QUANTIZE, HOME="/nonexistent", XDG_CACHE_HOME="/proc/nonexistent", TMPDIR=str(tmp_path))
    assert Path(cache).is_relative_to(tmp_path)
    assert _compiled(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder in which nobody can write")
def test_nowhere_to_write() -> None:
    output = _run(_QUANTIZE, SURGEON_CACHE_DIR="/proc/nonexistent")
    assert output[1] == "None"


def test_clear_cache(tmp_path: Path) -> None:
    old = tmp_path / "kernels" / "0123456789abcdef"
    old.mkdir(parents=True)
    (old / "stale.nbc").write_bytes(b"x" * 1000)
    code = "import surgeon_kernels as k; freed = k.clear_cache(); assert freed >= 1000, freed"
    _run(_QUANTIZE + code, SURGEON_CACHE_DIR=str(tmp_path))
    assert not _compiled(tmp_path)


def test_warm_reports_and_readies(tmp_path: Path) -> None:
    code = """
import surgeon_kernels as k
steps = list(k.warm(["q4_0"], sources=["F16", "BF16"]))
assert list(dict.fromkeys(step.name for step in steps)) == ["validation", "BF16", "F16", "Q4_0", ""], steps
assert sorted(step.index for step in steps) == [step.index for step in steps]
assert steps[0].index == 0 and steps[-1].index == 4 and {step.total for step in steps} == {4}
from surgeon_kernels.registry import module_of
assert module_of("Q4_0").quantize._compiled is not None and module_of("Q4_0").dequantize._compiled is None
try:
    module_of("Q4_0").quantize(1.0, 2, 3, 4, 5)
except TypeError as error:
    print(error)
"""
    (message,) = _run(code, SURGEON_CACHE_DIR=str(tmp_path))
    assert "No matching definition" in message


def test_what_another_process_compiles_is_waited_for_at_the_end(tmp_path: Path) -> None:
    code = """
import surgeon_kernels as k
from surgeon_kernels import compilation, warming
from surgeon_kernels.registry import module_of
warming._MOST_HELPERS = 0
with compilation._locked(k.cache_directory(), "q4_0.quantize", True):
    steps = k.warm(["Q4_0", "Q8_0"], sources=[])
    print([(step.name, step.index) for _, step in zip(range(4), steps)])
    print(module_of("Q4_0").quantize._compiled)
print([(step.name, step.index) for step in steps])
print(module_of("Q4_0").quantize._compiled is not None)
"""
    assert _run(code, SURGEON_CACHE_DIR=str(tmp_path)) == [
        "[('validation', 0), ('Q4_0', 1), ('Q8_0', 1), ('Q4_0', 2)]", "None", "[('', 3)]", "True",
    ]  # fmt: skip


def test_kernels_of_different_processes_go_together(tmp_path: Path) -> None:
    """Their inner functions have the same names and numbers in either process, and must not be taken for each other."""
    environment = {**os.environ, "SURGEON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(_PACKAGE.parent)}
    names = ("IQ2_S", "IQ3_S")
    compiling = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from surgeon_kernels.registry import module_of; module_of('{name}').quantize.compile()",
            ],
            env=environment,
        )
        for name in names
    ]
    assert [process.wait() for process in compiling] == [0, 0]
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from golden_blocks import rows, weights
from surgeon_kernels import quantize, warm
list(warm({names}, sources=[]))
for name in {names}:
    for block in quantize(rows(), name, weights(), compat=True):
        print(block.tobytes().hex())
"""
    record = json.loads(RECORD.read_text())
    assert _run(code, SURGEON_CACHE_DIR=str(tmp_path)) == [block for name in names for block in record[key(name, True)]]


def test_other_processes_help(tmp_path: Path) -> None:
    """One that leaves everything to a helper finds everything in the cache."""
    code = """
import time
from surgeon_kernels import cache_directory, warm, warming
ready, started = warming._is_ready, []
start = warming._helper
def left_to_helpers(name, job, *, wait):
    end = time.monotonic() + 200
    while not warming._is_kept(name, job) and time.monotonic() < end:
        time.sleep(0.05)
    assert warming._is_kept(name, job), "no help came"
    return wait and ready(name, job, wait=True)
warming._is_ready, warming._processors = left_to_helpers, lambda: 2
warming._helper = lambda jobs: started.append(start(jobs)) or started[-1]
times = lambda: {path: path.stat().st_mtime_ns for path in cache_directory().glob("*.nbc")}
for step in warm(["Q4_0", "Q8_0"], sources=["BF16"]):
    if step.index == 0 and step.name == "validation":
        before = times()
assert before == times() and len(before) == 5, (before, times())
assert [helper.returncode is not None for helper in started] == [True]
list(warm(["Q4_0", "Q8_0"], sources=["BF16"]))
assert len(started) == 1, "nothing was left to do"
"""
    _run(code, SURGEON_CACHE_DIR=str(tmp_path))


def test_versions_unused_for_a_month_go(tmp_path: Path) -> None:
    for name, age in (("old", 40), ("recent", 3)):
        folder = tmp_path / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        os.utime(folder / "lock", (time.time() - age * 86400,) * 2)
    _run(_QUANTIZE, SURGEON_CACHE_DIR=str(tmp_path))
    assert not (tmp_path / "kernels" / "old").exists()
    assert (tmp_path / "kernels" / "recent").exists()


@pytest.mark.parametrize("suffix", [".nbc", ".nbi"])
def test_damaged_files_are_replaced(tmp_path: Path, suffix: str) -> None:
    first = _run(_QUANTIZE, SURGEON_CACHE_DIR=str(tmp_path))
    for path in tmp_path.rglob(f"*{suffix}"):
        path.write_bytes(path.read_bytes()[:100])
    assert _run(_QUANTIZE, SURGEON_CACHE_DIR=str(tmp_path)) == first


_EVIL = """
import os, pickle, sys
class Evil:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)
sys.stdout.buffer.write(pickle.dumps(Evil()))
"""

_OWNER = ("owner",) if hasattr(os, "getuid") and os.getuid() == 0 else ()  # only root can give a file away


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the user's folder by access lists")
@pytest.mark.parametrize("level", [".", "kernels", "kernels/version", "file", *_OWNER])
def test_what_another_user_could_have_put_there_is_not_run(tmp_path: Path, level: str) -> None:
    cache, sign = tmp_path / "cache", tmp_path / "executed"
    environment = {"SURGEON_CACHE_DIR": str(cache)}
    first = _run("import os; os.umask(0)" + _QUANTIZE, **environment)  # made with an umask that lets everybody write
    places = [cache, *cache.rglob("*")]
    assert not [path for path in places if path.stat().st_mode & 0o077 and path.suffix != ".lock"]
    evil = subprocess.run([sys.executable, "-c", _EVIL, str(sign)], capture_output=True, check=True).stdout
    for path in cache.rglob("*.nb[ic]"):
        path.write_bytes(evil)
        if level == "file":
            path.chmod(0o622)
    if level == "owner":
        for path in cache.rglob("*.nb[ic]"):
            os.chown(path, 12345, -1)
    elif level != "file":
        (cache / level.replace("version", Path(first[1]).name)).chmod(0o777)
    second = _run(_QUANTIZE, **environment)
    assert second[0] == first[0]
    assert second[1] == (first[1] if level in ("file", "owner") else "None")
    assert not sign.exists()
    if level in ("file", "owner"):  # they were replaced, and the new ones are used
        times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}
        assert _run(_QUANTIZE, **environment) == first
        assert times == {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}
    else:
        lines = _run("from surgeon_kernels.cache_folders import refusals; print(*refusals())", **environment)
        assert level == "kernels/version" or "others may write there (mode 777)" in lines[0]
