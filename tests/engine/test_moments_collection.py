"""Collecting second moments: the sums against a closed form, shared inputs, and nothing lost on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import ONE_THREAD, TEXT, at_each

from surgeon.commands.imatrix import main as imatrix_command
from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Engine, ImatrixJob, PerplexityJob, Snapshot
from surgeon.engine.raw_moments import RawMoments
from surgeon.errors import Cancelled, SurgeonError, UsageError
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.collecting.blocks import read_block, write_block
from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun
from surgeon.measure.collecting.moments_run import MomentsCollection
from surgeon.moments.files import load_moments
from surgeon.moments.moments import MomentsError

CHUNKS, N_CTX = 6, 64  # four chunks in the first half of the text, two in the second


def wanted(model: Path, folder: Path, **changes: object) -> Collection:
    job = ImatrixJob(str(model), str(TEXT), N_CTX, 64, 64, n_chunks=CHUNKS, save_every=1)
    moments = MomentsCollection(folder / "moments.gguf")
    return replace(Collection(job, folder / "imatrix.gguf", moments=moments), **changes)  # type: ignore[arg-type]


def collect(collection: Collection, engine: Engine = ONE_THREAD) -> None:
    for _ in ImatrixRun(engine, collection).messages():
        pass


@pytest.fixture(scope="module")
def collected(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moments")
    collect(wanted(demo_model, folder))
    assert sorted(path.name for path in folder.iterdir()) == ["imatrix.gguf", "moments.gguf"]
    return folder


def test_inputs_are_shared_as_the_graph_shares_them(collected: Path) -> None:
    moments = load_moments(collected / "moments.gguf")
    assert len(moments.inputs) == 4 * 12 + 1
    assert len(moments.users) == 7 * 12 + 1
    for layer in range(12):
        block = f"blk.{layer}."
        shared = {moments.users[f"{block}{name}.weight"] for name in ("attn_q", "attn_k", "attn_v")}
        assert shared == {f"{block}attn_q.weight"}
        assert moments.users[f"{block}ffn_gate.weight"] == moments.users[f"{block}ffn_up.weight"]
        assert moments.users[f"{block}ffn_down.weight"] == f"{block}ffn_down.weight"
    assert moments.users["output.weight"] == "output.weight"
    assert {tuple(one.tokens.ravel()) for one in moments.inputs.values()} == {(4 * N_CTX, 2 * N_CTX)}
    assert moments.head.datasets == (str(TEXT),)
    assert (moments.head.chunk_count, moments.head.chunk_size) == (CHUNKS, N_CTX)


def test_the_diagonal_is_the_importance_matrix(collected: Path) -> None:
    moments, imatrix = load_moments(collected / "moments.gguf"), load_imatrix(collected / "imatrix.gguf")
    own = moments.as_imatrix
    assert set(own.entries) - set(imatrix.entries) == {"output.weight"}
    for name in imatrix.entries:
        assert own.weights(name) == pytest.approx(imatrix.weights(name), rel=1e-4), name


def test_the_matrix_is_the_same_without_moments(demo_model: Path, collected: Path, tmp_path: Path) -> None:
    collect(wanted(demo_model, tmp_path, moments=None))
    assert (tmp_path / "imatrix.gguf").read_bytes() == (collected / "imatrix.gguf").read_bytes()


def test_first_layer_sums_are_those_computed_by_hand(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    job = PerplexityJob(str(demo_model), str(TEXT), n_ctx=N_CTX, n_chunks=CHUNKS, save_base=str(tmp_path / "base"))
    from engine_helpers import figures

    from surgeon.gguf.file import open_gguf

    figures(job)
    tokens = BaseFile(str(tmp_path / "base")).tokens.copy()
    tokens[:, 0] = 0  # BOS takes the place of each chunk's first token
    with open_gguf(demo_model) as gguf:
        infos = {info.name: info for info in gguf.tensors}
        table = gguf.data(infos["token_embd.weight"]).view("<f2").reshape(-1, 256).astype(np.float64)
        weights = gguf.data(infos["blk.0.attn_norm.weight"]).view("<f4").astype(np.float64)
    x = table[tokens.reshape(-1)]
    x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * weights
    moments = load_moments(collected / "moments.gguf")
    one = moments.inputs["blk.0.attn_q.weight"]
    for half, rows in enumerate((x[: 4 * N_CTX], x[4 * N_CTX :])):
        expected = rows.T @ rows / len(rows)
        root = np.sqrt(np.diagonal(expected))
        assert (np.abs(moments.blocks(one, half=half)[0] - expected) <= 5e-4 * np.outer(root, root)).all()


def test_a_cancelled_run_ends_with_the_same_file(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    collection, cancelled = wanted(demo_model, tmp_path), threading.Event()
    with pytest.raises(Cancelled):
        at_each(Snapshot, ImatrixRun(ONE_THREAD, collection, cancelled).messages(), cancelled.set)
    assert not (tmp_path / "moments.gguf").exists()
    assert 0 < load_imatrix(collection.partial).chunk_count < CHUNKS
    collect(replace(collection, resume=True), Engine(threads=2))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["imatrix.gguf", "moments.gguf"]
    assert (tmp_path / "moments.gguf").read_bytes() == (collected / "moments.gguf").read_bytes()


def damaged(part: Path) -> str:
    with part.open("r+b") as file:
        file.seek(part.stat().st_size // 2)
        file.write(b"\x3f" * 64)
    return "not as they were left"


def truncated(part: Path) -> str:
    os.truncate(part, part.stat().st_size // 4 * 2)
    return "cut off"


def missing(part: Path) -> str:
    part.unlink()
    return "cannot be read"


def interrupted(collection: Collection) -> Path:
    """The sums that are left of it after one chunk."""
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        at_each(Snapshot, ImatrixRun(ONE_THREAD, collection, cancelled).messages(), cancelled.set)
    assert collection.moments is not None
    (part,) = collection.out.parent.glob("moments.gguf.partial.*")
    return part


@pytest.mark.parametrize("harm", [damaged, truncated, missing])
def test_sums_that_are_not_as_they_were_left_are_refused(
    harm: Callable[[Path], str], demo_model: Path, tmp_path: Path
) -> None:
    collection = wanted(demo_model, tmp_path)
    with pytest.raises(EngineError, match=harm(interrupted(collection))):
        collect(replace(collection, resume=True))
    assert not (tmp_path / "moments.gguf").exists()
    assert not collection.out.exists()


def test_sums_of_another_model_are_refused(demo_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "another.gguf"
    shutil.copy(demo_model, model)
    (tmp_path / "elsewhere").mkdir()
    collection, other = wanted(demo_model, tmp_path), wanted(model, tmp_path / "elsewhere")
    part = interrupted(collection)
    part.write_bytes(interrupted(other).read_bytes())
    with pytest.raises(EngineError, match=r"moments.gguf.partial.\d+: holds second moments of another collection"):
        collect(replace(collection, resume=True))
    assert not (tmp_path / "moments.gguf").exists()


def test_blocks_that_were_left_without_their_moments_are_collected_again(demo_model: Path, tmp_path: Path) -> None:
    collection, cancelled = replace(wanted(demo_model, tmp_path), block_chunks=2), threading.Event()
    with pytest.raises(Cancelled):
        at_each(Snapshot, ImatrixRun(ONE_THREAD, collection, cancelled).messages(), cancelled.set)
    (part,) = tmp_path.glob("moments.gguf.partial.*")
    part.unlink()
    collect(collection)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["imatrix.gguf", "moments.gguf"]
    (tmp_path / "undisturbed").mkdir()
    collect(replace(wanted(demo_model, tmp_path / "undisturbed"), block_chunks=2))
    assert (tmp_path / "moments.gguf").read_bytes() == (tmp_path / "undisturbed" / "moments.gguf").read_bytes()


def test_blocks_of_another_collection_are_refused(tmp_path: Path) -> None:
    path, sums = tmp_path / "000000.sums", {"layers": np.ones((2, 5))}
    write_block(path, sums, "this one")
    assert np.array_equal(read_block(path, "this one")["layers"], sums["layers"])
    with pytest.raises(EngineError, match="belongs to another collection"):
        read_block(path, "that one")
    whole = path.read_bytes()
    for harmed in (whole[:-9], whole.replace(np.ones(9).tobytes(), np.zeros(9).tobytes())):
        path.write_bytes(harmed)
        with pytest.raises(EngineError, match="cannot be read"):
            read_block(path, "this one")


def test_passes_over_some_layers_make_the_same_inputs(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    for layers in (range(5), range(5, 12)):
        moments = MomentsCollection(tmp_path / "moments.gguf", layers=frozenset(layers))
        collect(wanted(demo_model, tmp_path, moments=moments))
        held = {name for name in load_moments(tmp_path / "moments.gguf").users if name.startswith("blk.5.")}
        assert len(held) == (0 if 5 not in layers else 7)
    passes, whole = (load_moments(folder / "moments.gguf") for folder in (tmp_path, collected))
    assert passes.users == {**whole.users}
    for name, one in whole.inputs.items():
        assert np.array_equal(whole.blocks(one)[0], passes.blocks(passes.inputs[name])[0]), name
    assert (tmp_path / "imatrix.gguf").read_bytes() == (collected / "imatrix.gguf").read_bytes()


def test_layers_of_another_collection_are_not_joined(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "moments.gguf").write_bytes((collected / "moments.gguf").read_bytes())
    moments = MomentsCollection(tmp_path / "moments.gguf", layers=frozenset({0}))
    collection = wanted(demo_model, tmp_path, moments=moments)
    with pytest.raises(MomentsError, match="collected from another model, text"):
        collect(replace(collection, job=replace(collection.job, n_chunks=2)))


def test_blocks_and_a_single_half(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    collect(wanted(demo_model, tmp_path, moments=MomentsCollection(tmp_path / "moments.gguf", block=256, halves=1)))
    whole, blocks = (load_moments(folder / "moments.gguf") for folder in (collected, tmp_path))
    one = blocks.inputs["blk.7.ffn_down.weight"]
    assert one.tokens.tolist() == [[CHUNKS * N_CTX]]
    expected = whole.blocks(whole.inputs[one.name])[0]
    found = blocks.blocks(one)
    assert [len(part) for part in found] == [256, 256, 256]
    for number, part in enumerate(found):
        span = slice(256 * number, 256 * number + 256)
        scale = np.sqrt(np.diagonal(part))
        assert (np.abs(part - expected[span, span]) <= 5e-4 * np.outer(scale, scale)).all()


def test_earlier_files_are_added(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "moments.gguf"
    collect(
        wanted(demo_model, tmp_path, merge=(collected / "imatrix.gguf",),
               moments=MomentsCollection(out, merge=(collected / "moments.gguf",)))
    )  # fmt: skip
    once, twice = load_moments(collected / "moments.gguf"), load_moments(out)
    for name, one in once.inputs.items():
        assert twice.inputs[name].tokens.tolist() == (2 * one.tokens).tolist()
    assert twice.head.chunk_count == 2 * CHUNKS
    assert load_imatrix(tmp_path / "imatrix.gguf").chunk_count == 2 * CHUNKS


def test_an_existing_file_is_left_alone(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "moments.gguf").write_text("precious")
    with pytest.raises(SurgeonError, match="is a text, and a file of second moments never replaces one"):
        collect(wanted(demo_model, tmp_path))
    assert (tmp_path / "moments.gguf").read_text() == "precious"


def test_the_command_tells_what_it_takes_and_what_is_thin(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, moments = tmp_path / "i.gguf", tmp_path / "m.gguf"
    options = ["-m", str(demo_model), "-f", str(TEXT), "-c", "64", "--chunks", "6", "-t", "1", "-o", str(out)]
    assert imatrix_command([*options, "--moments", str(moments), "--layers", "0-1"]) == 0
    told = capsys.readouterr()
    assert "second moments of 8 inputs" in told.err
    assert "8 inputs of 14 weights" in told.out
    assert "8 saw fewer than 4 tokens a column and will not be used" in told.out
    with pytest.raises(UsageError, match="name the file of second moments to write with --moments"):
        imatrix_command([*options, "--in-file", str(moments)])
    assert imatrix_command(["--in-file", f"{moments},{moments}", "--moments", str(tmp_path / "sum.gguf")]) == 0
    assert load_moments(tmp_path / "sum.gguf").head.chunk_count == 12


def test_experts_have_moments_of_their_own(tmp_path: Path) -> None:
    from moe_probe import TOKENS
    from toy_architectures import EXPERTS, qwen3moe

    model = qwen3moe().write(tmp_path / "moe.gguf")
    probe = Path(__file__).with_name("moe_probe.py")
    done = subprocess.run(
        [sys.executable, str(probe), str(tmp_path / "sums.npz"), str(model)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    raw = RawMoments(tmp_path / "sums.npz.raw.1")
    inputs = {one.weight: one for one in raw.contents.inputs}
    for layer in range(4):
        block = f"blk.{layer}.ffn_"
        router, experts = inputs[f"{block}gate_inp.weight"], inputs[f"{block}gate_exps.weight"]
        assert experts.users == [f"{block}gate_exps.weight", f"{block}up_exps.weight"]
        assert experts.matrices == EXPERTS
        assert sum(seen for (seen,) in experts.tokens) == 2 * len(TOKENS)  # two experts are used for every token
        parts = [raw.panels(experts, matrix, 0)[0] for matrix in range(EXPERTS)]
        assert sum(parts) == pytest.approx(2 * raw.panels(router, 0, 0)[0], rel=1e-4, abs=1e-5)
        unseen = [part for part, (seen,) in zip(parts, experts.tokens, strict=True) if seen == 0]
        assert all((part == 0).all() for part in unseen)
