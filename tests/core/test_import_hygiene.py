"""What starting the program costs, and which package may know which."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import surgeon

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"numpy", "numba", "llvmlite", "textual", "rich", "gguf", "xllamacpp"}
SCREEN = {"textual", "rich"}


def imported_by(code: str) -> set[str]:
    """The top-level packages that are loaded after `code` has run in a fresh interpreter."""
    report = "import sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    program = f"{code}\n{report}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("option", ["--help", "--version", "help", "-h", "-V"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    loaded = imported_by(f"from surgeon import cli\nassert cli.run([{option!r}]) == 0")
    assert "surgeon" in loaded
    assert not loaded & HEAVY


def test_help_of_the_looking_commands_imports_nothing_heavy() -> None:
    for command in ("stats", "show", "verify", "demo", "cache"):
        code = f"""
from surgeon import cli
try:
    cli.run([{command!r}, "--help"])
except SystemExit as stop:
    assert stop.code == 0
"""
        assert not imported_by(code) & HEAVY, command


def test_the_screen_opens_without_what_forms_reckon_with() -> None:
    code = """
import sys, surgeon.tui.app
late = {"surgeon.measure.estimate", "surgeon.measure.evaluation", "surgeon.measure.collecting.imatrix_run"}
assert not late & set(sys.modules), late & set(sys.modules)
"""
    assert "textual" in imported_by(code)


def test_the_format_table_imports_nothing_heavy() -> None:
    assert not imported_by("import surgeon_kernels, surgeon_kernels.formats") & HEAVY


def core_modules() -> list[str]:
    return [
        module.name
        for module in pkgutil.walk_packages(surgeon.__path__, "surgeon.")
        if not module.name.startswith(("surgeon.tui", "surgeon.engine", "surgeon.__main__"))
    ]


def test_the_core_knows_no_screen() -> None:
    modules = core_modules()
    assert {"surgeon.gguf.file", "surgeon.model.model", "surgeon.imatrix.statistics", "surgeon.commands.show"} <= set(
        modules
    )
    loaded = imported_by("\n".join(f"import {name}" for name in modules))
    assert not loaded & SCREEN


def test_reading_a_model_needs_no_kernels() -> None:
    loaded = imported_by(
        "import surgeon.model.model, surgeon.imatrix.files, surgeon.imatrix.statistics, surgeon.imatrix.coverage"
    )
    assert not loaded & {"numba", "llvmlite", "gguf", *SCREEN}


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(linter)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
