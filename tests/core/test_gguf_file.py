"""Reading whole files: every value type, alignment, version and way of splitting."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_builder import build_gguf, toy_llama

from surgeon.gguf.file import GGUFError, Value, ValueType, open_gguf

SCALARS = {
    ValueType.UINT8: 255,
    ValueType.INT8: -128,
    ValueType.UINT16: 65535,
    ValueType.INT16: -32768,
    ValueType.UINT32: 2**32 - 1,
    ValueType.INT32: -(2**31),
    ValueType.FLOAT32: 0.15625,
    ValueType.BOOL: True,
    ValueType.STRING: "κλειδί\n",
    ValueType.UINT64: 2**64 - 1,
    ValueType.INT64: -(2**63),
    ValueType.FLOAT64: 0.1,
}


def test_every_scalar_type_survives(tmp_path: Path) -> None:
    kv = {f"x.{type_.name}": Value.of(type_, value) for type_, value in SCALARS.items()}
    with open_gguf(build_gguf(tmp_path / "a.gguf", kv, {})) as file:
        assert list(file.kv) == list(kv)
        assert {key: value.decode() for key, value in file.kv.items()} == {
            f"x.{type_.name}": value for type_, value in SCALARS.items()
        }
        assert file.kv == kv


def test_every_array_type_survives(tmp_path: Path) -> None:
    kv = {f"x.{type_.name}": Value.array(type_, [value, value]) for type_, value in SCALARS.items()}
    kv["empty"] = Value.array(ValueType.STRING, [])
    with open_gguf(build_gguf(tmp_path / "a.gguf", kv, {})) as file:
        for type_, value in SCALARS.items():
            found = file.kv[f"x.{type_.name}"]
            assert (found.type, found.element_type, found.count) == (ValueType.ARRAY, type_, 2)
            assert found.decode() == [value, value]
        assert file.kv["empty"].decode() == []


def test_arrays_of_arrays_survive(tmp_path: Path) -> None:
    inner = [Value.array(ValueType.INT32, [1, 2]), Value.array(ValueType.STRING, ["a", "", "bc"])]
    nested = Value.array(ValueType.ARRAY, [Value.array(ValueType.ARRAY, inner), Value.array(ValueType.UINT8, [])])
    path = build_gguf(tmp_path / "a.gguf", {"nested": nested, "after": 7}, {})
    with open_gguf(path) as file:
        assert file.kv["nested"].decode() == [[[1, 2], ["a", "", "bc"]], []]
        assert file.kv["nested"] == nested
        assert file.kv["after"].decode() == 7


def test_bytes_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    token = Value.array(ValueType.STRING, [b"\xff\xfe", "ok"])
    with open_gguf(build_gguf(tmp_path / "a.gguf", {"tokens": token}, {})) as file:
        assert file.kv["tokens"].raw == token.raw
        assert file.kv["tokens"].decode() == ["��", "ok"]


def test_a_file_name_that_is_not_utf8_is_stored_as_it_is() -> None:
    assert Value.of(ValueType.STRING, os.fsdecode(b"a\xff")).raw == struct.pack("<Q", 2) + b"a\xff"


@pytest.mark.parametrize(
    ("type_", "value"),
    [(ValueType.UINT8, 256), (ValueType.INT32, 2**31), (ValueType.UINT32, -1), (ValueType.FLOAT32, "x")],
)
def test_a_value_that_does_not_fit_is_refused(type_: ValueType, value: object) -> None:
    with pytest.raises(ValueError, match=type_.name.lower()):
        Value.of(type_, value)
    with pytest.raises(ValueError, match=type_.name.lower()):
        Value.array(type_, [value])


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint64("n", 2**40)
    writer.add_array("names", ["a", "b"])
    data = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    writer.add_tensor("blk.0.x.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as file:
        assert file.kv["general.architecture"].decode() == "llama"
        assert file.kv["n"].decode() == 2**40
        assert file.kv["names"].decode() == ["a", "b"]
        (info,) = file.tensors
        assert (info.name, info.ne, info.type_name, info.n_rows) == ("blk.0.x.weight", (4, 3, 2), "F16", 6)
        assert file.data(info).tobytes() == data.tobytes()


def test_agrees_with_the_gguf_package_on_golden_models(golden_models: Path) -> None:
    for name in ("dense", "zoo", "align64", "bigvocab", "deepseek2"):
        path = golden_models / f"{name}.gguf"
        with open_gguf(path) as file:
            theirs = gguf.GGUFReader(path)
            assert list(file.kv) == [key for key in theirs.fields if not key.startswith("GGUF.")]
            for ours, other in zip(file.tensors, theirs.tensors, strict=True):
                assert (ours.name, ours.offset, ours.nbytes) == (other.name, other.data_offset, other.n_bytes)
                assert list(ours.ne) == other.shape.tolist()
                assert ours.type_name == other.tensor_type.name
                assert ours.n_elements == other.n_elements


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_any_alignment(tmp_path: Path, alignment: int) -> None:
    tensors = {"a": np.arange(5, dtype=np.int8), "b": np.arange(3, dtype=np.float32)}
    path = build_gguf(tmp_path / "a.gguf", {"general.alignment": alignment}, tensors, alignment)
    with open_gguf(path) as file:
        assert file.alignment == alignment
        assert all(info.offset % alignment == 0 for info in file.tensors)
        for info in file.tensors:
            assert file.data(info).tobytes() == tensors[info.name].tobytes()


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    path = toy_llama(tmp_path / "a.gguf")
    old = tmp_path / "old.gguf"
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", 2)
    old.write_bytes(raw)
    with open_gguf(path) as new_file, open_gguf(old) as old_file:
        assert (new_file.version, old_file.version) == (3, 2)
        assert new_file.tensors == old_file.tensors


def test_unknown_tensor_types_show_their_id_and_reach_to_the_next_tensor(tmp_path: Path) -> None:
    path = build_gguf(tmp_path / "a.gguf", {}, {name: np.zeros(16, np.float32) for name in ("one", "two", "three")})
    raw = path.read_bytes()
    for name in (b"one", b"three"):
        at = raw.index(name) + len(name) + 4 + 8
        raw = raw[:at] + struct.pack("<I", 97) + raw[at + 4 :]
    path.write_bytes(raw)
    with open_gguf(path) as file:
        one, two, three = file.tensors
        assert (one.type_name, one.format, one.nbytes) == ("type 97", None, 64)
        assert (two.type_name, two.nbytes) == ("F32", 64)
        assert three.nbytes == len(raw) - three.offset == 64


def test_gaps_and_any_order_of_the_data_are_read(tmp_path: Path) -> None:
    path = build_gguf(tmp_path / "a.gguf", {}, {"a": np.arange(8, dtype=np.float32), "b": np.ones(8, np.float32)})
    raw = bytearray(path.read_bytes())
    for name, offset in ((b"a", 96), (b"b", 0)):
        at = raw.index(struct.pack("<Q", 1) + name) + 9 + 4 + 8 + 4
        raw[at : at + 8] = struct.pack("<Q", offset)
    start = len(raw) - 64
    raw[start:] = np.ones(8, np.float32).tobytes() + bytes(64) + np.arange(8, dtype=np.float32).tobytes()
    path.write_bytes(raw)
    with open_gguf(path) as file:
        values = [file.data(info).view(np.float32).tolist() for info in file.tensors]
    assert values == [list(range(8)), [1] * 8]


def test_a_tensor_without_dimensions_is_one_element(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"s" + struct.pack("<IIQ", 0, 0, 0)
    path.write_bytes(head.ljust(64, b"\0") + struct.pack("<f", 2.5))
    with open_gguf(path) as file:
        assert file.tensors[0].ne == (1,)
        assert file.data(file.tensors[0]).view(np.float32).tolist() == [2.5]


def test_any_shard_opens_the_set(golden_models: Path) -> None:
    paths = [golden_models / f"shard-{i}-of-00003.gguf" for i in ("00001", "00002", "00003")]
    for opened in paths:
        with open_gguf(opened) as file:
            assert file.paths == tuple(paths)
            assert file.kv["general.architecture"].decode() == "llama"
            assert len(file.tensors) == file.kv["split.tensors.count"].decode() == 30
            assert sorted({info.shard for info in file.tensors}) == [0, 1, 2]
            assert file.nbytes == sum(path.stat().st_size for path in paths)
            for info in file.tensors:
                whole = paths[info.shard].read_bytes()
                assert file.data(info).tobytes() == whole[info.offset : info.offset + info.nbytes]
                piece = bytearray(10)
                file.read_into(info, 3, piece)
                assert piece == whole[info.offset + 3 : info.offset + 13]


def test_a_file_that_is_only_called_like_a_shard_is_read_alone(tmp_path: Path) -> None:
    path = toy_llama(tmp_path / "toy-00001-of-00002.gguf")
    with open_gguf(path) as file:
        assert file.paths == (path,)


def test_read_into_fills_any_buffer_and_knows_its_bounds(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.float32)
    with open_gguf(build_gguf(tmp_path / "a.gguf", {}, {"a": values})) as file:
        (info,) = file.tensors
        out = np.empty((2, 25), np.float32)
        file.read_into(info, 200, out)
        assert out.ravel().tolist() == list(range(50, 100))
        for start, size in ((-1, 4), (399, 2), (400, 1)):
            with pytest.raises(ValueError, match="a has 400 bytes"):
                file.read_into(info, start, bytearray(size))


def test_data_cannot_be_written(tmp_path: Path) -> None:
    with open_gguf(toy_llama(tmp_path / "a.gguf")) as file, pytest.raises(ValueError, match="read-only"):
        file.data(file.tensors[0])[0] = 1


def test_closing_gives_the_files_back(tmp_path: Path) -> None:
    path = toy_llama(tmp_path / "a.gguf")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    file = open_gguf(path)
    file.close()
    file.close()
    with pytest.raises(GGUFError, match="was closed"):
        file.read_into(file.tensors[0], 0, bytearray(4))
    with pytest.raises(GGUFError, match="was closed"):
        file.data(file.tensors[0])
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_cut_short_while_it_is_open_is_told(tmp_path: Path) -> None:
    path = toy_llama(tmp_path / "a.gguf")
    with open_gguf(path) as file:
        assert file.changed() == []
        os.truncate(path, file.tensors[-1].offset + 8)
        assert file.changed() == [path]
        with pytest.raises(GGUFError, match=r"cut short while output\.weight"):
            file.read_into(file.tensors[-1], 0, bytearray(16))


def test_a_failed_set_leaves_no_file_open(golden_models: Path, tmp_path: Path) -> None:
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("open files can be counted on Linux only")
    for number in (1, 2):
        shutil.copy(golden_models / f"shard-0000{number}-of-00003.gguf", tmp_path)
    (tmp_path / "shard-00003-of-00003.gguf").write_bytes(b"GGUF")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(GGUFError, match="shard-00003-of-00003"):
        open_gguf(tmp_path / "shard-00001-of-00003.gguf")
    assert len(os.listdir("/proc/self/fd")) == before
