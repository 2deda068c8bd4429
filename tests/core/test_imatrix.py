"""Importance matrices: both formats, llama-quantize's weights, merging, renumbering, damage."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.errors import SurgeonError
from surgeon.imatrix.coverage import coverage
from surgeon.imatrix.files import load_imatrix, save_dat, save_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry, ImatrixError, merge
from surgeon.model.model import load_model
from surgeon.write_guard import REPLACE

F = np.float32


def entry(sums: list[list[float]], counts: list[int]) -> ImatrixEntry:
    return ImatrixEntry(np.array(sums, F), np.array(counts, np.int64))


def matrix(entries: dict[str, ImatrixEntry], **fields: object) -> Imatrix:
    return Imatrix(Path("x.gguf"), entries, **fields)  # type: ignore[arg-type]


KV = {"imatrix.datasets": ["a.txt"], "imatrix.chunk_count": 3, "imatrix.chunk_size": 512}
ONES = np.ones((1, 8), F)
COUNT = np.array([[1536.0]], F)


def gguf_imatrix(path: Path, tensors: dict[str, np.ndarray], kv: dict | None = None) -> Path:
    return build_gguf(path, {"general.type": "imatrix"} | (KV if kv is None else kv), tensors)


# ---------------------------------------------------------------- both formats


@pytest.mark.parametrize("name", ["dense", "gemma3", "moe8"])
def test_conversion_gives_llama_imatrix_own_bytes(name: str, golden_models: Path, tmp_path: Path) -> None:
    new, old = golden_models / f"{name}.imatrix.gguf", golden_models / f"{name}.imatrix.dat"
    save_dat(load_imatrix(new), tmp_path / "a.dat")
    assert (tmp_path / "a.dat").read_bytes() == old.read_bytes()
    save_gguf(load_imatrix(new), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == new.read_bytes()
    save_dat(load_imatrix(old), tmp_path / "b.dat")
    assert (tmp_path / "b.dat").read_bytes() == old.read_bytes()


def test_the_old_format_becomes_sums_of_one_count(golden_models: Path, tmp_path: Path) -> None:
    old = load_imatrix(golden_models / "moe8.imatrix.dat")
    save_gguf(old, tmp_path / "a.gguf")
    new = load_imatrix(tmp_path / "a.gguf")
    assert (old.is_legacy, new.is_legacy) == (True, False)
    assert (new.chunk_count, new.chunk_size, new.datasets) == (20, 512, ("calibration.txt",))
    assert list(new.entries) == list(old.entries)
    for name, found in new.entries.items():
        calls = int(old.entries[name].counts[0])
        assert found.counts.tolist() == [calls * 512]
        assert (found.sums == old.entries[name].sums * F(512)).all()
        assert (new.weights(name) == old.weights(name)).all()


def test_the_bundled_matrix(demo_imatrix: Path, tmp_path: Path) -> None:
    imatrix = load_imatrix(demo_imatrix)
    assert (len(imatrix.entries), imatrix.chunk_count, imatrix.chunk_size) == (85, 60, 512)
    assert imatrix.datasets == ("out/text/calib-mixed.txt",)
    assert imatrix.entries["blk.3.ffn_down.weight"].sums.shape == (1, 768)
    save_gguf(imatrix, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == demo_imatrix.read_bytes()


def test_an_old_file_may_end_without_chunks_and_dataset(golden_models: Path) -> None:
    imatrix = load_imatrix(golden_models / "dense-notail.imatrix.dat")
    assert (len(imatrix.entries), imatrix.chunk_count, imatrix.datasets) == (84, 0, ())


def test_several_datasets_and_another_chunk_size(golden_models: Path) -> None:
    imatrix = load_imatrix(golden_models / "tied-bf16.imatrix.gguf")
    assert (imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size) == (("wiki.txt", "code.txt"), 7, 256)


# ---------------------------------------------------------------------- weights


def test_weights_are_means_and_one_for_an_expert_never_chosen() -> None:
    imatrix = matrix({"w": entry([[3, 6], [5, 7]], [3, 0])})
    assert imatrix.weights("w").tolist() == [1, 2, 1, 1]
    assert imatrix.weights("w").dtype == F


def test_weights_of_the_old_format_are_divided_by_calls() -> None:
    imatrix = matrix({"w": entry([[3, 7]], [3]), "zero": entry([[3, 7]], [0])}, is_legacy=True)
    assert imatrix.weights("w").tolist() == [F(3) / F(3), F(7) / F(3)]
    assert imatrix.weights("zero").tolist() == [3, 7]


def test_weights_are_one_float32_division(golden_models: Path) -> None:
    imatrix = load_imatrix(golden_models / "dense.imatrix.gguf")
    found = imatrix.entries["blk.0.ffn_down.weight"]
    assert (imatrix.weights("blk.0.ffn_down.weight") == found.sums[0] / F(found.counts[0])).all()


# --------------------------------------------- filtered, renumbered, merged, covered


def test_filters_are_substrings() -> None:
    names = ["blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.10.ffn_up.weight"]
    imatrix = matrix({name: entry([[1]], [1]) for name in names})
    assert list(imatrix.filtered(["ffn"]).entries) == names[1:]
    assert list(imatrix.filtered(["attn", "blk.10."]).entries) == [names[0], names[2]]
    assert list(imatrix.filtered(exclude=["ffn"]).entries) == names[:1]
    assert list(imatrix.filtered().entries) == names
    assert list(imatrix.filtered(["F.N"]).entries) == []


def test_renumbering_leaves_out_what_is_pruned() -> None:
    imatrix = matrix(
        {f"blk.{i}.ffn_up.weight": entry([[i]], [1]) for i in range(4)} | {"output.weight": entry([[9]], [1])}
    )
    moved = imatrix.renumbered({0: 0, 2: 1, 3: 2})
    assert {name: found.sums.item() for name, found in moved.entries.items()} == {
        "blk.0.ffn_up.weight": 0,
        "blk.1.ffn_up.weight": 2,
        "blk.2.ffn_up.weight": 3,
        "output.weight": 9,
    }


def test_merging_adds_sums_counts_and_datasets() -> None:
    a = matrix({"w": entry([[1, 2]], [512]), "x": entry([[1]], [512])}, datasets=("a",))
    b = matrix({"w": entry([[10, 20]], [1024])}, datasets=("b",))
    both = merge([a, b])
    assert both.entries["w"].sums.tolist() == [[11, 22]]
    assert both.entries["w"].counts.tolist() == [1536]
    assert both.entries["x"].sums.tolist() == [[1]]
    assert (both.datasets, both.chunk_count, both.chunk_size) == (("a", "b"), 3, 512)


def test_merging_expands_the_old_format_and_broadcasts_its_single_count() -> None:
    old = matrix({"w": entry([[2, 4, 6, 8]], [2])}, is_legacy=True)
    new = matrix({"w": entry([[1, 1], [1, 1]], [10, 20])})
    for both in (merge([old, new]), merge([new, old])):
        assert both.entries["w"].sums.tolist() == [[1025, 2049], [3073, 4097]]
        assert both.entries["w"].counts.tolist() == [1034, 1044]
        assert not both.is_legacy


def test_merging_what_does_not_fit_names_the_entry() -> None:
    with pytest.raises(ImatrixError, match="w has 3 values and 1 counts, the files before have 2 and 1"):
        merge([matrix({"w": entry([[1, 2]], [1])}), matrix({"w": entry([[1, 2, 3]], [1])})])
    with pytest.raises(ImatrixError, match="3 counts"):
        merge([matrix({"w": entry([[1] * 3] * 2, [1, 2])}), matrix({"w": entry([[1] * 2] * 3, [1, 2, 3])})])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_merging_a_matrix_with_itself_doubles_it(golden_models: Path) -> None:
    imatrix = load_imatrix(golden_models / "qwen3moe.imatrix.gguf")
    twice = merge([imatrix, imatrix])
    for name, found in twice.entries.items():
        assert (found.sums == 2 * imatrix.entries[name].sums).all()
        assert (found.counts == 2 * imatrix.entries[name].counts).all()
        assert (twice.weights(name) == imatrix.weights(name)).all()


def test_coverage_of_a_partial_matrix(golden_models: Path) -> None:
    model = load_model(golden_models / "dense.gguf")
    found = coverage(model, load_imatrix(golden_models / "dense-partial.imatrix.gguf"))
    assert found.missing == ("blk.3.attn_v.weight", "blk.7.ffn_gate.weight")
    assert (len(found.covered), found.misfits, found.orphans) == (82, (), ())
    assert found.summary() == "82/84 tensors covered"


def test_coverage_tells_entries_that_do_not_fit(golden_models: Path) -> None:
    model = load_model(golden_models / "shard-00001-of-00003.gguf")
    found = coverage(model, load_imatrix(golden_models / "bad-size.imatrix.gguf"))
    assert [(misfit.name, misfit.found, misfit.expected) for misfit in found.misfits] == [
        ("blk.1.attn_q.weight", 128, 256)
    ]
    assert len(found.covered) == 20
    other = coverage(model, load_imatrix(golden_models / "tied-bf16.imatrix.gguf"))
    assert other.orphans == ()
    deeper = coverage(model, load_imatrix(golden_models / "zoo.imatrix.gguf"))
    assert any(name.startswith("blk.") for name in deeper.orphans) == bool(deeper.orphans)


def test_coverage_of_experts_counts_values_of_all_matrices(golden_models: Path) -> None:
    for name in ("moe8", "qwen3moe", "deepseek2"):
        found = coverage(
            load_model(golden_models / f"{name}.gguf"), load_imatrix(golden_models / f"{name}.imatrix.gguf")
        )
        assert (found.missing, found.misfits, found.orphans) == ((), (), ())
        assert found.covered


def test_coverage_names_entries_without_a_tensor(tmp_path: Path) -> None:
    model = load_model(build_gguf(tmp_path / "m.gguf", {}, {"blk.0.ffn_up.weight": np.zeros((2, 8), F)}))
    found = coverage(model, matrix({"blk.5.ffn_up.weight": entry([[1] * 8], [1])}))
    assert found.orphans == ("blk.5.ffn_up.weight",)
    assert found.missing == ("blk.0.ffn_up.weight",)
    assert found.summary() == "0/1 tensors covered, 1 for no tensor of this model"


# ----------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("tensors", "kv", "message"),
    [
        ({"w.in_sum2": ONES}, None, "w.in_sum2 has no partner w.counts"),
        ({"w.counts": COUNT}, None, "w.counts has no partner w.in_sum2"),
        ({"w.in_sum2": ONES.astype(np.float16), "w.counts": COUNT}, None, "w.in_sum2 is F16, not F32"),
        ({"w.in_sum2": ONES, "w.counts": COUNT.astype(np.float64)}, None, "w.counts is F64, not F32"),
        ({"w.in_sum2": ONES, "w.counts": np.ones((2, 1), F)}, None, "sums for 1 matrices, but 2 counts"),
        ({"w.in_sum2": ONES * F(np.inf), "w.counts": COUNT}, None, "w has the value inf in channel 0"),
        ({"w.in_sum2": ONES, "w.counts": COUNT * F(np.nan)}, None, "w has the value nan"),
        ({"w.in_sum2": ONES, "w.counts": -COUNT}, None, "impossible count -1536"),
        ({"w.in_sum2": ONES, "w.counts": COUNT * F(1e30)}, None, "impossible count 1.5"),
        ({}, None, "holds no entries"),
        ({"w.in_sum2": ONES, "w.counts": COUNT}, {}, "imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size"),
        ({"w.in_sum2": ONES, "w.counts": COUNT}, KV | {"imatrix.chunk_size": "512"}, "uint32, not string"),
        ({"w.in_sum2": ONES, "w.counts": COUNT}, KV | {"imatrix.datasets": "a"}, "must be a list of names"),
        ({"w.weight": ONES}, {"general.architecture": "llama"}, "is a model, not an importance matrix"),
    ],
)
def test_a_bad_gguf_matrix_is_one_line(tensors: dict, kv: dict | None, message: str, tmp_path: Path) -> None:
    path = gguf_imatrix(tmp_path / "bad.gguf", tensors, kv)
    with pytest.raises(ImatrixError, match=message) as caught:
        load_imatrix(path)
    assert str(path) in str(caught.value)


def test_golden_bad_matrices(golden_models: Path) -> None:
    for name, message in {
        "bad-nan.imatrix.gguf": "blk.0.ffn_down.weight has the value nan in channel 17",
        "bad-nokv.imatrix.gguf": "lacks imatrix.chunk_size",
        "bad-short.imatrix.dat": "the file ends inside blk.1.attn_v.weight",
    }.items():
        with pytest.raises(ImatrixError, match=message):
            load_imatrix(golden_models / name)


def test_other_tensors_beside_sums_and_counts_are_ignored(tmp_path: Path) -> None:
    tensors = {"w.in_sum2": ONES, "w.counts": COUNT, "w.in_sum": ONES}
    assert list(load_imatrix(gguf_imatrix(tmp_path / "a.gguf", tensors)).entries) == ["w"]


def test_counts_are_rounded(tmp_path: Path) -> None:
    tensors = {"w.in_sum2": np.ones((3, 8), F), "w.counts": np.array([[2.4], [2.5], [0.2]], F)}
    found = load_imatrix(gguf_imatrix(tmp_path / "a.gguf", tensors)).entries["w"]
    assert found.counts.tolist() == [2, 3, 0]


def dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    parts = [
        struct.pack("<i", len(name))
        + name
        + struct.pack("<ii", calls, len(values))
        + struct.pack(f"<{len(values)}f", *values)
        for name, calls, values in entries
    ]
    return struct.pack("<i", len(parts)) + b"".join(parts) + tail


GOOD = (b"blk.0.w.weight", 2, [1.0, 2.0])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\1", "ends inside the number of entries"),
        (b"plain text, no matrix at all", "neither a GGUF nor an importance matrix"),
        (struct.pack("<i", 0) + bytes(64), "neither a GGUF"),
        (struct.pack("<i", -1) + bytes(64), "neither a GGUF"),
        (struct.pack("<ii", 1, -5) + bytes(64), "entry 1 of 1 claims -5 bytes"),
        (struct.pack("<ii", 1, 2**31 - 1) + bytes(64), "ends inside entry 1 of 1"),
        (dat((b"", 1, [1.0]), GOOD), "entry 1 of 2 has the name b''"),
        (dat((b"\xff\xfe", 1, [1.0])), "no tensor can have"),
        (dat((b"w\x1b[2J", 1, [1.0])), "no tensor can have"),
        (dat((b"w", 1, []), GOOD), "w has 0 values"),
        (dat((b"w", 1, [1.0, float("nan")])), "w has the value nan in channel 1"),
        (dat(GOOD, GOOD), "blk.0.w.weight appears twice"),
        (dat(GOOD, tail=b"\1\0"), "the number of chunks"),
        (dat(GOOD, tail=struct.pack("<ii", 1, 100) + b"short"), "the dataset's name"),
    ],
)
def test_a_bad_old_matrix_is_one_line(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(raw)
    with pytest.raises(SurgeonError, match=message) as caught:
        load_imatrix(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_no_file_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match="No such file"):
        load_imatrix(tmp_path / "nothing.dat")
    with pytest.raises(SurgeonError, match="is a folder"):
        load_imatrix(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=6), keep=st.integers(0, 80))
def test_fuzzed_old_matrices_are_read_or_refused(changes: list, keep: int, tmp_path: Path) -> None:
    raw = bytearray(dat(GOOD, (b"output.weight", 1, [3.0]), tail=struct.pack("<ii", 1, 2) + b"ab"))
    for position, byte in changes:
        raw[position % len(raw)] = byte
    path = tmp_path / "fuzzed.dat"
    path.write_bytes(raw[: keep or None])
    message = ""
    try:
        imatrix = load_imatrix(path)
        assert all(len(imatrix.weights(name)) for name in imatrix.entries)
    except SurgeonError as error:
        message = str(error)
    assert message.isprintable()


def test_saving_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    save_gguf(matrix({"w": entry([[2]], [1])}), path)
    save_gguf(matrix({"w": entry([[1]], [1])}), path, REPLACE)
    assert load_imatrix(path).weights("w").tolist() == [1]
    assert os.listdir(tmp_path) == ["a.gguf"]
    with pytest.raises(SurgeonError, match=r"nowhere does not exist; make it first"):
        save_dat(matrix({"w": entry([[1]], [1])}), tmp_path / "nowhere" / "a.dat")


def test_entries_that_saw_nothing_are_left_out_of_the_old_format(tmp_path: Path) -> None:
    save_dat(matrix({"seen": entry([[512]], [512]), "unseen": entry([[0]], [0])}), tmp_path / "a.dat")
    assert list(load_imatrix(tmp_path / "a.dat").entries) == ["seen"]
    with pytest.raises(ImatrixError, match="no entry saw any data"):
        save_dat(matrix({"unseen": entry([[0]], [0])}), tmp_path / "b.dat")


def test_a_sum_beyond_float32_is_not_saved(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    huge = matrix({"w": entry([[1, 3e38]], [1])})
    with pytest.raises(ImatrixError, match="w has the value inf in channel 1"):
        save_gguf(merge([huge, huge]), tmp_path / "a.gguf")
    with pytest.raises(ImatrixError, match="w has the value inf in channel 1"):
        save_gguf(matrix({"w": entry([[1, 3e38]], [1])}, is_legacy=True), tmp_path / "a.gguf")
    assert os.listdir(tmp_path) == []
    assert not recwarn.list


extremes = st.sampled_from([0, 0.4, 0.6, 1, 3, 1e10, 1e15, 1e30, -1, 3e38]) | st.floats(0, 2**24, width=32)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sums=st.lists(extremes, min_size=4, max_size=4),
    counts=st.lists(extremes, min_size=2, max_size=2),
    chunks=st.sampled_from([0, 3, 2**31, 2**32 - 1]),
    size=st.sampled_from([0, 1, 512, 2**32 - 1]),
)
def test_extreme_numbers_are_converted_or_refused(
    sums: list[float], counts: list[float], chunks: int, size: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    kv = KV | {"imatrix.chunk_count": chunks, "imatrix.chunk_size": size}
    tensors = {"w.in_sum2": np.array(sums, F).reshape(2, 2), "w.counts": np.array(counts, F).reshape(2, 1)}
    message = ""
    try:
        imatrix = load_imatrix(gguf_imatrix(tmp_path / "a.gguf", tensors, kv))
        save_gguf(merge([imatrix, imatrix]), tmp_path / "b.gguf", REPLACE)
        save_dat(imatrix, tmp_path / "a.dat", REPLACE)
        save_gguf(load_imatrix(tmp_path / "a.dat"), tmp_path / "c.gguf", REPLACE)
        assert load_imatrix(tmp_path / "c.gguf").weights("w").size == 4
    except ImatrixError as error:
        message = str(error)
    assert message.isprintable()
    assert not recwarn.list
