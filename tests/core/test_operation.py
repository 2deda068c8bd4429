"""Writing: the bytes, the progress, the memory's bounds, cancelling, splitting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, llama_kv, toy_llama

import surgeon_kernels
from surgeon.anatomy import TensorSlice
from surgeon.errors import Cancelled, SurgeonError
from surgeon.gguf.file import open_gguf
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.write.operation import Progress, Summary, WriteOptions, write


def run(
    model: Path, plan: Plan, out: Path, options: WriteOptions | None = None, imatrix: Imatrix | None = None
) -> tuple[list[Progress], Summary]:
    """Write to the end; returns what was reported."""
    resolution = resolve(load_model(model), plan, imatrix)
    *progress, summary = write(resolution, imatrix, out, options or WriteOptions(threads=2), threading.Event())
    assert isinstance(summary, Summary)
    assert all(isinstance(item, Progress) for item in progress)
    return [item for item in progress if isinstance(item, Progress)], summary


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    with open_gguf(path) as file:
        return {info.name: (info.type_name, file.data(info).tobytes()) for info in file.tensors}


def test_copy_keeps_every_byte_of_every_tensor(demo_model: Path, tmp_path: Path) -> None:
    _, summary = run(demo_model, Plan(), tmp_path / "out.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(demo_model)
    assert summary.paths == (tmp_path / "out.gguf",)
    assert summary.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert (summary.copied, summary.converted, summary.resumed) == (len(tensors_of(demo_model)), 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_conversion_is_that_of_the_kernels_on_whole_tensors(demo_model: Path, tmp_path: Path) -> None:
    run(demo_model, Plan(file_type="Q8_0"), tmp_path / "out.gguf")
    found = tensors_of(tmp_path / "out.gguf")
    with open_gguf(demo_model) as file:
        for info in file.tensors:
            if info.type_name != "F16":
                continue
            rows = file.data(info).view(np.float16).astype(np.float32).reshape(info.n_rows, info.ne[0])
            expected = np.empty((info.n_rows, info.ne[0] // 32 * 34), np.uint8)
            surgeon_kernels.quantize_into(rows, "Q8_0", expected)
            assert found[info.name] == ("Q8_0", expected.tobytes())


def test_importances_reach_the_right_tensor(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    imatrix = load_imatrix(demo_imatrix)
    by_hand = tuple((f"blk.{layer}.ffn_down.weight", "Q4_K") for layer in range(12))
    plan = Plan(types=by_hand, pruned=frozenset({2}))
    run(demo_model, plan, tmp_path / "out.gguf", imatrix=imatrix)
    found = tensors_of(tmp_path / "out.gguf")
    with open_gguf(demo_model) as file:
        for new, old in ((1, 1), (2, 3), (10, 11)):
            name = f"blk.{old}.ffn_down.weight"
            (info,) = (info for info in file.tensors if info.name == name)
            rows = file.data(info).view(np.float16).astype(np.float32).reshape(info.n_rows, info.ne[0])
            expected = np.empty((info.n_rows, info.ne[0] // 256 * 144), np.uint8)
            surgeon_kernels.quantize_into(rows, "Q4_K", expected, imatrix.weights(name))
            assert found[f"blk.{new}.ffn_down.weight"] == ("Q4_K", expected.tobytes())


def expert_model(path: Path, experts: int = 3, rows: int = 40) -> tuple[Path, np.ndarray, Imatrix]:
    """A model with one expert tensor, its values, and importances that differ by expert."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((experts, rows, 256), np.float32)
    name = "blk.0.ffn_up_exps.weight"
    build_gguf(path, llama_kv(1), {"token_embd.weight": np.ones((4, 256), np.float32), name: values})
    sums = rng.random((experts, 256), np.float32) + 0.01
    entry = ImatrixEntry(sums, np.full(experts, 7, np.int64))
    return path, values, Imatrix(path.with_suffix(".imatrix"), {name: entry})


@pytest.mark.parametrize("max_buffer_bytes", [1, 50_000, 256 << 20])
def test_every_expert_has_its_own_importances(tmp_path: Path, max_buffer_bytes: int) -> None:
    path, values, imatrix = expert_model(tmp_path / "in.gguf")
    plan = Plan(types=(("blk.0.ffn_up_exps.weight", "Q4_K"),))
    run(path, plan, tmp_path / "out.gguf", WriteOptions(2, max_buffer_bytes), imatrix)
    type_name, data = tensors_of(tmp_path / "out.gguf")["blk.0.ffn_up_exps.weight"]
    assert type_name == "Q4_K"
    weights = imatrix.weights("blk.0.ffn_up_exps.weight").reshape(3, 256)
    expected = np.empty((3, 40, 144), np.uint8)
    for expert in range(3):
        surgeon_kernels.quantize_into(values[expert], "Q4_K", expected[expert], weights[expert])
    assert data == expected.tobytes()


@pytest.mark.parametrize("to_type", ["F32", "Q4_K"])
@pytest.mark.parametrize(
    ("dimension", "keep"),
    [(0, ((0, 256), (512, 768))), (1, ((0, 5), (20, 40))), (2, ((1, 3),)), (1, ((39, 40),)), (0, ((256, 512),))],
)
def test_slices_of_a_tensor_that_holds_all_layers(
    tmp_path: Path, to_type: str, dimension: int, keep: tuple[tuple[int, int], ...]
) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((3, 40, 768), np.float32)
    name = "per_layer.weight"
    path = build_gguf(tmp_path / "in.gguf", llama_kv(1), {"a.weight": np.ones((4, 256), np.float32), name: values})
    imatrix = Imatrix(tmp_path / "im", {name: ImatrixEntry(rng.random((3, 768), np.float32), np.ones(3, np.int64))})
    whole = resolve(load_model(path), Plan(types=((name, to_type),)), imatrix)
    (number,) = (number for number, op in enumerate(whole.ops) if op.source == name)
    op = whole.ops[number]._replace(slice=TensorSlice(name, dimension, keep))
    axis = 2 - dimension
    kept = np.concatenate([np.arange(start, end) for start, end in keep])
    expected = np.ascontiguousarray(values.take(kept, axis))
    weights = imatrix.weights(name).reshape(3, 768)
    if dimension != 1:
        weights = np.ascontiguousarray(weights.take(kept, {0: 1, 2: 0}[dimension]))
    data = expected.tobytes()
    if to_type == "Q4_K":
        matrices = zip(expected, weights, strict=True)
        data = b"".join(surgeon_kernels.quantize(rows, "Q4_K", weight).tobytes() for rows, weight in matrices)
    ops = (*whole.ops[:number], op._replace(nbytes=len(data)), *whole.ops[number + 1 :])
    list(write(replace(whole, ops=ops), imatrix, tmp_path / "out.gguf", WriteOptions(2, 20_000), threading.Event()))
    assert tensors_of(tmp_path / "out.gguf")[name] == (to_type, data)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors[-1].ne == op.ne


def test_importances_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path, _, imatrix = expert_model(tmp_path / "in.gguf")
    name = "blk.0.ffn_up_exps.weight"
    resolution = resolve(load_model(path), Plan(types=(("blk.0.ffn_up_exps.weight", "Q4_K"),)), imatrix)
    short = replace(imatrix, entries={name: ImatrixEntry(imatrix.entries[name].sums[:2], np.ones(2, np.int64))})
    with pytest.raises(SurgeonError, match=r"ffn_up_exps.weight has 512 values, the tensor needs 768"):
        list(write(resolution, short, tmp_path / "out.gguf", WriteOptions(2), threading.Event()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf"]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("max_buffer_bytes", [1, 100_000])
def test_threads_and_buffers_change_no_byte(
    demo_model: Path, tmp_path: Path, threads: int, max_buffer_bytes: int
) -> None:
    run(demo_model, Plan(file_type="Q8_0"), tmp_path / "one.gguf", WriteOptions(1))
    run(demo_model, Plan(file_type="Q8_0"), tmp_path / "other.gguf", WriteOptions(threads, max_buffer_bytes))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_unknown_and_integer_types_are_copied_unchecked(tmp_path: Path) -> None:
    odd = np.frombuffer(np.full(64, np.nan, np.float32).tobytes(), np.int32)
    path = build_gguf(tmp_path / "in.gguf", llama_kv(1), {"token_embd.weight": np.ones((2, 256), np.float32), "x": odd})
    run(path, Plan(), tmp_path / "out.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("file_type", ["COPY", "Q8_0"])
def test_a_bad_weight_stops_the_run(tmp_path: Path, bad: float, file_type: str) -> None:
    weights = np.ones((300, 256), np.float32)
    weights[123, 45] = bad
    tensors = {"token_embd.weight": np.ones((4, 256), np.float32), "blk.0.attn_q.weight": weights}
    path = build_gguf(tmp_path / "in.gguf", llama_kv(1), tensors)
    with pytest.raises(SurgeonError, match=r"in.gguf: tensor 'blk.0.attn_q.weight' row 123 holds NaN or infinity"):
        run(path, Plan(file_type=file_type), tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_a_quantized_block_that_overflows_stops_the_run(tmp_path: Path) -> None:
    weights = np.ones((300, 256), np.float32)
    weights[7, 3] = 1e38
    path = build_gguf(tmp_path / "in.gguf", llama_kv(1), {"token_embd.weight": weights})
    with pytest.raises(SurgeonError, match=r"'token_embd.weight' row 7: its values are too large for F16"):
        run(path, Plan(file_type="F16"), tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_problems_of_the_plan_are_refused_before_anything_is_made(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match="novels-12M"):
        run(demo_model, Plan(file_type="IQ2_XXS"), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_progress_goes_forward_to_the_end(demo_model: Path, tmp_path: Path) -> None:
    progress, summary = run(demo_model, Plan(file_type="Q8_0"), tmp_path / "out.gguf")
    done = [item.done_bytes for item in progress]
    assert done == sorted(done)
    assert all(item.total_bytes == summary.source_bytes for item in progress)
    assert all(0 <= item.tensor_done <= item.tensor_total for item in progress)
    assert all(0 <= item.index <= item.count == summary.converted + summary.copied for item in progress)


def slowly(seconds: float) -> object:
    """first_invalid, with a pause: every slab takes at least so long."""
    check = surgeon_kernels.first_invalid

    def paused(blocks: np.ndarray, qtype: str) -> int:
        time.sleep(seconds)
        return int(check(blocks, qtype))

    return paused


def test_cancelling_takes_less_than_a_fifth_of_a_second(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgeon_kernels, "first_invalid", slowly(0.03))
    cancelled = threading.Event()
    resolution = resolve(load_model(demo_model), Plan())
    reports = write(resolution, None, tmp_path / "out.gguf", WriteOptions(2), cancelled)
    while isinstance(progress := next(reports), Progress) and progress.done_bytes == 0:
        pass
    cancelled.set()
    began = time.monotonic()
    with pytest.raises(Cancelled, match=r"cancelled after \d+ of 111 tensors; nothing was left behind"):
        list(reports)
    assert time.monotonic() - began < 0.2 + 0.3  # the second summand: other processes on the same cores
    assert not list(tmp_path.iterdir())


def test_dropping_the_generator_leaves_nothing(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgeon_kernels, "first_invalid", slowly(0.01))
    before = threading.active_count()
    reports: Iterator[Progress | Summary] = write(
        resolve(load_model(demo_model), Plan()), None, tmp_path / "out.gguf", WriteOptions(2), threading.Event()
    )
    while isinstance(progress := next(reports), Progress) and progress.done_bytes == 0:
        pass
    reports.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_shards_are_merged(golden_models: Path, tmp_path: Path) -> None:
    shards = [golden_models / f"shard-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    run(shards[1], Plan(), tmp_path / "out.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(shards[0])
    assert len(open_gguf(tmp_path / "out.gguf").paths) == 1


def test_shards_are_kept(golden_models: Path, tmp_path: Path) -> None:
    _, summary = run(golden_models / "shard-00001-of-00003.gguf", Plan(keep_split=True), tmp_path / "out.gguf")
    assert [path.name for path in summary.paths] == [f"out-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert tensors_of(summary.paths[0]) == tensors_of(golden_models / "shard-00001-of-00003.gguf")
    assert sorted(tmp_path.iterdir()) == list(summary.paths)


def test_split_by_size(demo_model: Path, tmp_path: Path) -> None:
    _, summary = run(demo_model, Plan(), tmp_path / "out.gguf", WriteOptions(2, split_max_bytes=5_000_000))
    assert len(summary.paths) == 5
    with open_gguf(summary.paths[3]) as file:
        assert file.paths == summary.paths
    assert tensors_of(summary.paths[2]) == tensors_of(demo_model)
    assert summary.nbytes == sum(path.stat().st_size for path in summary.paths)


def test_a_model_without_tensors(tmp_path: Path) -> None:
    path = build_gguf(tmp_path / "in.gguf", llama_kv(1), {})
    run(path, Plan(), tmp_path / "out.gguf")
    assert open_gguf(tmp_path / "out.gguf").tensors == ()


def test_an_output_may_lie_in_another_folder_by_a_link(tmp_path: Path) -> None:
    path = toy_llama(tmp_path / "in.gguf")
    (tmp_path / "real").mkdir()
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real" / "model.gguf")
    _, summary = run(path, Plan(), tmp_path / "link.gguf")
    assert summary.paths == (tmp_path / "real" / "model.gguf",)
    assert (tmp_path / "link.gguf").is_symlink()
    assert tensors_of(tmp_path / "link.gguf") == tensors_of(path)
