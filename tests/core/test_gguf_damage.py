"""Damaged files: one clear line for each, and neither a hang nor memory for any."""

from __future__ import annotations

import os
import re
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.gguf import header as gguf_parse
from surgeon.gguf.file import GGUFError, Value, ValueType, open_gguf


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def start(n_tensors: int = 0, n_kv: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv)


def pair(key: bytes, type_: int, raw: bytes) -> bytes:
    return string(key) + struct.pack("<I", type_) + raw


def tensor(name: bytes = b"t", ne: tuple[int, ...] = (8,), type_: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, type_, offset)


def whole(head: bytes, data: int = 4096) -> bytes:
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(data)


HUGE = 2**63 + 5
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"GGUF", "only 4 bytes"),
    "magic": (b"QQ\3\4".ljust(64), "starts with b'QQ"),
    "version 0": (start(version=0), "version 0"),
    "version 1": (start(version=1), "version 1"),
    "version 99": (start(version=99), "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (whole(start(n_tensors=10**6)), "claims 1000000 tensors"),
    "many pairs": (whole(start(n_kv=2**64 - 1)), f"claims {2**64 - 1} key-value pairs"),
    "negative count": (whole(start(n_tensors=2**64 - 1)), "tensors, but only"),
    "long key": (whole(start(n_kv=1) + struct.pack("<Q", HUGE)), f"name of {HUGE} bytes"),
    "key over the limit": (whole(start(n_kv=1) + pair(b"k" * 70000, 4, bytes(4))), "name of 70000 bytes"),
    "empty key": (whole(start(n_kv=1) + pair(b"", 4, bytes(4))), "key 1 of 1 has an empty name"),
    "key not UTF-8": (whole(start(n_kv=1) + pair(b"\xff", 4, bytes(4))), "not UTF-8"),
    "control characters": (whole(start(n_kv=1) + pair(b"a\x1b[2J", 4, bytes(4))), r"control .* 'a\\x1b"),
    "duplicate key": (whole(start(n_kv=2) + 2 * pair(b"k", 4, bytes(4))), "'k' appears twice"),
    "value type": (whole(start(n_kv=1) + pair(b"k", 13, bytes(8))), "'k' has value type 13"),
    "long string": (whole(start(n_kv=1) + pair(b"k", 8, struct.pack("<Q", HUGE))), "inside the value of 'k'"),
    "element type": (
        whole(start(n_kv=1) + pair(b"k", 9, struct.pack("<IQ", 99, 1))),
        "array of key 'k' has value type",
    ),
    "array count": (
        whole(start(n_kv=1) + pair(b"k", 9, struct.pack("<IQ", 4, 2**62))),
        f"claims {2**62} elements of uint32",
    ),
    "array of strings": (
        whole(start(n_kv=1) + pair(b"k", 9, struct.pack("<IQ", 8, 2**60))),
        f"claims {2**60} elements of string",
    ),
    "string in an array": (
        whole(start(n_kv=1) + pair(b"k", 9, struct.pack("<IQQ", 8, 3, HUGE))),
        "inside the value of 'k'",
    ),
    "last string of an array": (
        whole(start(n_kv=1) + pair(b"k", 9, struct.pack("<IQQ", 8, 1, 2**64 - 1))),
        "inside the value of 'k'",
    ),
    "deep arrays": (whole(start(n_kv=1) + pair(b"k", 9, struct.pack("<IQ", 9, 1) * 50)), "deeper than 8"),
    "alignment 0": (whole(start(n_kv=1) + pair(b"general.alignment", 4, struct.pack("<I", 0))), "uint32 0"),
    "alignment 48": (whole(start(n_kv=1) + pair(b"general.alignment", 4, struct.pack("<I", 48))), "power of two"),
    "alignment text": (whole(start(n_kv=1) + pair(b"general.alignment", 8, string(b"32"))), "must be a uint32"),
    "alignment array": (
        whole(start(n_kv=1) + pair(b"general.alignment", 9, struct.pack("<IQI", 4, 1, 32))),
        "array of 1",
    ),
    "empty tensor name": (whole(start(1) + tensor(b"")), "tensor 1 of 1 has an empty name"),
    "long tensor name": (whole(start(1) + tensor(b"n" * 128)), "longer than 127 bytes"),
    "tensor name with escape": (whole(start(1) + tensor(b"\x1b]0;x\x07")), "control characters"),
    "duplicate tensor": (whole(start(2) + tensor() + tensor(offset=32)), "'t' appears twice"),
    "9 dimensions": (whole(start(1) + tensor(ne=(1,) * 9)), "9 dimensions"),
    "many dimensions": (whole(start(1) + string(b"t") + struct.pack("<I", 2**32 - 1)), "4294967295 dimensions"),
    "dimension of 0": (whole(start(1) + tensor(ne=(8, 0))), "impossible shape 8 × 0"),
    "dimensions overflow": (whole(start(1) + tensor(ne=(2**32, 2**32))), "impossible shape"),
    "negative dimension": (whole(start(1) + tensor(ne=(2**64 - 8,))), "impossible shape"),
    "row of half a block": (whole(start(1) + tensor(ne=(100, 4), type_=12)), "Q4_K needs rows of a multiple of 256"),
    "offset outside": (whole(start(1) + tensor(offset=10**9)), "the file ends at"),
    "offset overflows": (whole(start(1) + tensor(offset=2**64 - 32)), "the file ends at"),
    "offset outside, unknown type": (whole(start(1) + tensor(type_=97, offset=10**9)), "the file ends at"),
    "data cut": (whole(start(1) + tensor(ne=(1024,)), data=4000), "it was cut short"),
    "overlap": (whole(start(2) + tensor(ne=(64,)) + tensor(b"u", offset=64)), "'t' overlaps"),
    "same place": (whole(start(2) + tensor() + tensor(b"u")), "overlaps"),
    "same place, unknown types": (whole(start(2) + tensor(type_=97) + tensor(b"u", type_=97)), "overlaps"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_line(name: str, tmp_path: Path) -> None:
    raw, message = DAMAGE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match=message) as caught:
        open_gguf(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert line.isprintable()
    assert ";" in line, "the remedy is missing"
    assert caught.value.exit_code == 1


def test_golden_damaged_files(golden_models: Path) -> None:
    expected = {
        "bad-truncated.gguf": "blk.0.ffn_gate.weight.*cut short",
        "bad-header.gguf": "ends inside key 8 of 17",
        "bad-magic.gguf": "GGUX",
        "bad-version.gguf": "version 1",
        "orphan-00001-of-00003.gguf": "2 of 3 shards are missing beside it, first orphan-00002-of-00003",
    }
    for name, message in expected.items():
        with pytest.raises(GGUFError, match=message):
            open_gguf(golden_models / name)


def no_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "is a folder"),
        (lambda folder: folder / "nowhere.gguf", "No such file"),
        (lambda folder: no_pipe(folder / "pipe"), "not a regular file"),
        (lambda folder: Path("a\0b"), "cannot be a file name"),
        (lambda folder: folder / ("n" * 300), "cannot be read"),
    ],
)
def test_what_is_no_file_is_told(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=message):
        open_gguf(make(tmp_path))


def test_an_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_gguf(tmp_path / "a.gguf", {}, {})

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything, so permissions alone would not do
    with pytest.raises(GGUFError, match="cannot be read: Permission denied"):
        open_gguf(path)


def shard(folder: Path, name: str, no: int, count: int, tensors: dict[str, object], total: int) -> Path:
    kv = {
        "split.no": Value.of(ValueType.UINT16, no),
        "split.count": Value.of(ValueType.UINT16, count),
        "split.tensors.count": Value.of(ValueType.INT32, total),
    }
    return build_gguf(folder / name, kv, tensors)


def pair_of_shards(folder: Path, total: int = 2, second_no: int = 1, second: str = "b", count: int = 2) -> Path:
    zeros = np.zeros(8, np.float32)
    shard(folder, "m-00002-of-00002.gguf", second_no, count, {second: zeros}, total)
    return shard(folder, "m-00001-of-00002.gguf", 0, 2, {"a": zeros}, total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 5}, "split.tensors.count is 5, the shards have 2 tensors"),
        ({"second_no": 0}, "says it is part 1 of 2, its name says 2 of 2"),
        ({"count": 3}, "says it is part 2 of 3, its name says 2 of 2"),
        ({"second": "a"}, "'a' is in m-00001-of-00002.gguf too"),
    ],
)
def test_shards_that_do_not_belong_together(arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=message):
        open_gguf(pair_of_shards(tmp_path, **arguments))  # type: ignore[arg-type]


def test_a_renamed_shard_and_a_missing_one(tmp_path: Path) -> None:
    first = pair_of_shards(tmp_path)
    renamed = shutil.copy(first, tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"part 1 of 2 .* is not named like one"):
        open_gguf(renamed)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(GGUFError, match="1 of 2 shards are missing beside it, first m-00002-of-00002"):
        open_gguf(first)


def test_split_count_of_a_wrong_type(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"split\.count is not a valid count"):
        open_gguf(build_gguf(tmp_path / "a.gguf", {"split.count": "three"}, {}))


SAMPLE_KV = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "tokens": ["<s>", "a", "bc"],
    "scores": [0.5, -1.0, 2.0],
    "nested": Value.array(ValueType.ARRAY, [Value.array(ValueType.INT8, [1, 2])]),
}
SAMPLE_TENSORS = {"blk.0.a.weight": ("Q4_0", (64, 2)), "b": np.ones((3, 5), np.float32)}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_gguf(tmp_path_factory.mktemp("sample") / "s.gguf", SAMPLE_KV, SAMPLE_TENSORS).read_bytes()


def test_truncated_anywhere(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    with_padding = len(sample) - 4  # the last tensor has 60 bytes, padded to 64
    for length in range(with_padding):
        path.write_bytes(sample[:length])
        with pytest.raises(GGUFError, match=re.escape(str(path))):
            open_gguf(path)


fuzz = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.sampled_from([0, 1, 8, 9, 12, 32, 127, 128, 255])), max_size=12)
)
def test_random_bytes_are_read_or_refused(sample: bytes, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(sample)
    for position, byte in changes:
        raw[position % len(raw)] = byte
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(raw)
    message = ""
    try:
        with open_gguf(path) as file:
            for value in file.kv.values():
                value.decode()
            for info in file.tensors:
                assert file.data(info).nbytes == info.nbytes
    except GGUFError as error:
        message = str(error)
    assert message.isprintable()


@fuzz
@given(body=st.binary(max_size=300), n_tensors=st.integers(0, 3), n_kv=st.integers(0, 3))
def test_random_bodies_are_read_or_refused(tmp_path: Path, body: bytes, n_tensors: int, n_kv: int) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(start(n_tensors, n_kv) + body)
    message = ""
    try:
        open_gguf(path).close()
    except GGUFError as error:
        message = str(error)
    assert message.isprintable()


def test_a_header_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file reads as zeros: as many empty strings as there are bytes, were they all walked."""
    monkeypatch.setattr(gguf_parse, "HEADER_LIMIT", 4 << 20)
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as out:
        out.write(start(n_kv=1) + pair(b"tokens", 9, struct.pack("<IQ", 8, 2**32)))
        out.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(GGUFError, match="does not end within 4 MiB"):
        open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_absurd_counts_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    tracemalloc.start()
    for raw, _ in DAMAGE.values():
        path.write_bytes(raw)
        with pytest.raises(GGUFError):
            open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20
