"""The layout of files to be written: ggml's, byte for byte."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.gguf.file import Value, ValueType, open_gguf
from surgeon.gguf.layout import Entry, header, padded
from surgeon_kernels.formats import FORMATS


def test_header_bytes_by_hand() -> None:
    kv = [("a", Value.of(ValueType.UINT16, 7)), ("b", Value.array(ValueType.STRING, ["x", ""]))]
    found = header(kv, [Entry("t", (4, 2, 1, 1), 0, 32), Entry("u", (1, 1), 1, 2)], 32)
    expected = (
        b"GGUF" + struct.pack("<IQQ", 3, 2, 2)
        + struct.pack("<Q", 1) + b"a" + struct.pack("<IH", 2, 7)
        + struct.pack("<Q", 1) + b"b" + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 1) + b"x" + bytes(8)
        + struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
        + struct.pack("<Q", 1) + b"u" + struct.pack("<IQIQ", 1, 1, 1, 32)
    )  # fmt: skip
    assert found.data == expected.ljust(padded(len(expected), 32), b"\0")
    assert found.offsets == (len(found.data), len(found.data) + 32)
    assert found.total_bytes == len(found.data) + 64  # the last tensor is padded too


def test_a_file_without_tensors_ends_with_its_padding() -> None:
    found = header([], [], 64)
    assert (len(found.data), found.total_bytes, found.offsets) == (64, 64, ())


def test_rebuilds_the_header_of_every_golden_file(golden_models: Path) -> None:
    rebuilt = 0
    for path in sorted(golden_models.glob("*.gguf")):
        if path.name.startswith("bad-") or "-of-" in path.name:
            continue
        with open_gguf(path) as file:
            entries = [Entry(info.name, info.ne, info.type_id, info.nbytes) for info in file.tensors]
            found = header(file.kv.items(), entries, file.alignment)
            raw = path.read_bytes()
            assert found.data == raw[: len(found.data)], path.name
            assert found.total_bytes == len(raw), path.name
            assert found.offsets == tuple(info.offset for info in file.tensors), path.name
        rebuilt += 1
    assert rebuilt > 30


names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=15)
formats = st.sampled_from([FORMATS[name] for name in ("F32", "F16", "Q8_0", "Q4_K", "I8")])


@settings(max_examples=60, deadline=None)
@given(
    kv=st.dictionaries(names.map(lambda name: "k" + name), st.text(max_size=20), max_size=4),
    tensors=st.dictionaries(names, st.tuples(formats, st.integers(1, 3), st.integers(1, 4)), max_size=5),
    alignment=st.sampled_from([1, 16, 32, 256]),
)
def test_what_is_laid_out_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, kv: dict, tensors: dict, alignment: int
) -> None:
    pairs = [("general.alignment", Value.of(ValueType.UINT32, alignment))]
    pairs += [(key, Value.of(ValueType.STRING, text)) for key, text in kv.items()]
    entries = [
        Entry(name, (format_.block * blocks, rows), format_.number, format_.block_bytes * blocks * rows)
        for name, (format_, blocks, rows) in tensors.items()
    ]
    layout = header(pairs, entries, alignment)
    path = tmp_path_factory.mktemp("layout") / "a.gguf"
    path.write_bytes(layout.data.ljust(layout.total_bytes, b"\0"))
    with open_gguf(path) as file:
        assert list(file.kv.items()) == pairs
        assert [info.name for info in file.tensors] == [entry.name for entry in entries]
        assert tuple(info.offset for info in file.tensors) == layout.offsets
        assert [info.nbytes for info in file.tensors] == [entry.nbytes for entry in entries]
