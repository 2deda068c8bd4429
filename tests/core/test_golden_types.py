"""Every TYPE on the shapes of real models gives the types and bytes that llama-quantize --dry-run gave."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.model.model import Model, load_model
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPES = sorted(path.stem for path in (GOLDEN / "types").glob("*.json"))
# Any entry at all switches the mixes to their "has imatrix" branch; no tensor has this name.
ANY_IMATRIX = Imatrix(Path("any"), {"blk.0.any.weight": ImatrixEntry(np.ones((1, 32), np.float32), np.array([1]))})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sparse files with the shapes of real models: tens of GB to look at, a few kB on disk."""
    folder = tmp_path_factory.mktemp("shapes")
    subprocess.run([sys.executable, str(GOLDEN / "make_shapes.py"), str(folder)], check=True, capture_output=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


def block_class(name: str) -> tuple[str, int | None]:
    match = re.match(r"blk\.(\d+)\.", name)
    return (f"blk.*.{name[match.end() :]}", int(match[1])) if match else (name, None)


def expected_type(record: dict[str, Any], name: str) -> str:
    """The recorded type of a tensor that is not kept."""
    kind, block = block_class(name)
    found = record["except"].get(kind, record["default"])
    if isinstance(found, str):
        return found.upper()
    for type_name, ranges in found.items():
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            if int(first) <= (block or 0) <= int(last or first):
                return str(type_name).upper()
    raise AssertionError(f"{name}: the record has no type")


def check(model: Model, table: dict[str, Any], kind: str, imatrix: Imatrix | None, *, compat: bool) -> None:
    record = table["types"].get(f"{kind}+imatrix" if imatrix else kind) or table["types"][kind]
    resolution = resolve(model, Plan(file_type=kind, compat=compat), imatrix)
    if "error" in record:
        assert "no tensor type fallback" in record["error"]
        assert any("fall back" in problem.text for problem in resolution.errors)
        return
    wrong = []
    for op in resolution.ops:
        kept = block_class(op.name)[0] in table["kept"]
        expected = op.from_type if kept else expected_type(record, op.name)
        if op.to_type != expected:
            wrong.append(f"{op.name}: {op.to_type} ({op.reason}), recorded {expected}")
    assert not wrong, f"{kind}: {wrong[:3]}"
    assert resolution.data_bytes == record["bytes"]
    assert f"{resolution.bpw:.2f}" == record["bpw"]
    assert resolution.fallbacks == record["fallbacks"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compat", [False, True])
def test_every_type_as_recorded(shapes: Path, shape: str, compat: bool) -> None:
    table = json.loads((GOLDEN / "types" / f"{shape}.json").read_text())
    model = load_model(shapes / f"{shape}.gguf")
    with model.file:
        kinds = [kind for kind in FILE_TYPES if kind in table["types"]]
        assert len(kinds) >= 35
        for kind in kinds:
            check(model, table, kind, None, compat=compat)
            check(model, table, kind, ANY_IMATRIX, compat=compat)


def test_the_records_cover_every_type() -> None:
    """COPY chooses nothing and the three aliases are recorded under their full names."""
    table = json.loads((GOLDEN / "types" / f"{SHAPES[0]}.json").read_text())
    recorded = {kind.removesuffix("+imatrix") for kind in table["types"]}
    assert set(FILE_TYPES) - recorded == {"COPY", "Q3_K", "Q4_K", "Q5_K"}
