"""Collecting importance matrices: the sums against a closed form, and nothing lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import ONE_THREAD, TEXT, Base, at_each

from surgeon.engine.child.collection import imatrix_collection
from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Finished, ImatrixJob, Message, Snapshot, Step, Within
from surgeon.errors import Cancelled, SurgeonError
from surgeon.gguf.file import open_gguf
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.influence import load_influence
from surgeon.measure.collecting.imatrix_run import Collection, ImatrixRun

CHUNKS, N_CTX = 4, 64


def wanted(model: Path, out: Path, **changes: object) -> Collection:
    job = ImatrixJob(str(model), str(TEXT), N_CTX, 64, 64, n_chunks=CHUNKS, process_output=True, save_every=1)
    return replace(Collection(job, out), **changes)  # type: ignore[arg-type]


def collect(collection: Collection) -> list[Message]:
    return list(ImatrixRun(ONE_THREAD, collection).messages())


@pytest.fixture(scope="session")
def collected(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collected") / "imatrix.gguf"
    messages = collect(wanted(demo_model, out))
    assert isinstance(messages[-1], Finished)
    assert sum(isinstance(message, Snapshot) for message in messages) == CHUNKS
    return out


def test_the_first_layer_is_told_before_the_decode_ends(demo_model: Path, tmp_path: Path) -> None:
    messages = collect(wanted(demo_model, tmp_path / "imatrix.gguf"))
    told = next(place for place, message in enumerate(messages) if isinstance(message, Within))
    assert messages[told] == Within(1 / 12, CHUNKS)
    assert told < next(place for place, message in enumerate(messages) if isinstance(message, Step))


def test_layers_of_a_decode_are_parts_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imatrix_collection, "_TELL_SECONDS", 0.0)
    told: list[Message] = []
    within = imatrix_collection._Within(told.append, 10, 2)
    within.begin(4, 4, graphs=2)
    for _ in range(5):  # one more than there should be
        within.layer_done()
    within.begin(8, 2, graphs=1)
    within.layer_done()
    assert told == [Within(done, 10) for done in (5, 6, 7, 8, 8, 9)]


def test_entries_and_counts_are_those_of_the_bundled_matrix(collected: Path, demo_imatrix: Path) -> None:
    mine, llamas = load_imatrix(collected), load_imatrix(demo_imatrix)
    assert sorted(mine.entries) == sorted(llamas.entries)
    assert {int(entry.counts[0]) for entry in mine.entries.values()} == {CHUNKS * N_CTX}
    assert (mine.chunk_count, mine.chunk_size, mine.datasets) == (CHUNKS, N_CTX, (str(TEXT),))
    for name, entry in llamas.entries.items():
        assert mine.entries[name].sums.shape == entry.sums.shape, name


def test_first_layer_sums_are_those_computed_by_hand(collected: Path, demo_model: Path, base: Base) -> None:
    tokens = BaseFile(str(base.path)).tokens.copy()  # the same text in the same chunks
    tokens[:, 0] = 0  # BOS takes the place of each chunk's first token
    with open_gguf(demo_model) as gguf:
        infos = {info.name: info for info in gguf.tensors}
        table = gguf.data(infos["token_embd.weight"]).view("<f2").reshape(-1, 256).astype(np.float64)
        weights = gguf.data(infos["blk.0.attn_norm.weight"]).view("<f4").astype(np.float64)
    x = table[tokens.reshape(-1)]
    x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * weights
    imatrix, influence = load_imatrix(collected), load_influence(collected)
    assert influence is not None
    for name in ("attn_q", "attn_k", "attn_v"):
        entry = imatrix.entries[f"blk.0.{name}.weight"]
        assert entry.sums[0] == pytest.approx((x * x).sum(axis=0), rel=1e-4)
        means = influence.channel_sums[f"blk.0.{name}.weight"] / entry.counts[:, None]
        assert means[0] == pytest.approx(x.mean(axis=0), abs=1e-4)
    assert (imatrix.entries["blk.0.attn_output.weight"].sums != imatrix.entries["blk.0.attn_q.weight"].sums).any()


def test_influence_of_layers(collected: Path) -> None:
    influence = load_influence(collected)
    assert influence is not None
    assert influence.layers[:, 4].tolist() == [CHUNKS * N_CTX] * 12
    assert np.argmax(influence.block_influence) == 0  # the layer whose loss destroys this model
    assert ((influence.block_influence > 0) & (influence.block_influence < 1.5)).all()
    # Energy of the stream: what layer n puts out is what layer n + 1 takes in.
    assert influence.layers[1:, 2] == pytest.approx(influence.layers[:-1, 3], rel=1e-6)
    assert influence.layer_input_modification == pytest.approx(
        -influence.layers[:, 1] / np.sqrt(influence.layers[:, 2] * influence.layers[:, 3])
    )
    assert influence.weight_zd is not None
    assert ((influence.weight_zd > 0.1) & (influence.weight_zd < 0.2)).all()


@pytest.mark.parametrize("changes", ["one by one", "two at once", "added to another", "chunks left out"])
def test_an_interrupted_run_ends_with_the_same_bits(
    changes: str, collected: Path, demo_model: Path, tmp_path: Path
) -> None:
    collection = wanted(demo_model, tmp_path / "imatrix.gguf")
    if changes == "two at once":
        collection = replace(collection, job=replace(collection.job, n_batch=2 * N_CTX))
    elif changes == "added to another":
        collection = replace(collection, merge=(collected,))
    elif changes == "chunks left out":
        collection = replace(collection, job=replace(collection.job, first_chunk=1, n_chunks=3))
    whole = replace(collection, out=tmp_path / "whole.gguf")
    undisturbed = collect(whole)[-1]
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        at_each(Snapshot, ImatrixRun(ONE_THREAD, collection, cancelled).messages(), cancelled.set)
    assert not collection.out.exists()
    assert load_imatrix(collection.partial).chunk_count > 0
    messages = collect(replace(collection, resume=True))
    assert 0 < sum(isinstance(message, Snapshot) for message in messages) < collection.job.n_chunks
    assert not collection.partial.exists()
    assert collection.out.read_bytes() == whole.out.read_bytes()
    assert messages[-1] == undisturbed  # the perplexity is that of all chunks


def cancelled_run(model: Path, out: Path) -> Collection:
    """A collection that was stopped after its first chunk."""
    collection, cancelled = wanted(model, out), threading.Event()
    with pytest.raises(Cancelled):
        at_each(Snapshot, ImatrixRun(ONE_THREAD, collection, cancelled).messages(), cancelled.set)
    return replace(collection, resume=True)


def test_another_run_does_not_go_on(demo_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(demo_model.read_bytes())
    collection = cancelled_run(model, tmp_path / "imatrix.gguf")
    kept = collection.partial.read_bytes()
    others = [
        replace(collection, job=replace(collection.job, **{name: value}))
        for name, value in {
            "n_ctx": 32,
            "process_output": False,
            "n_batch": 128,
            "perplexity": False,
            "first_chunk": 1,
        }.items()
    ]
    for other in others:
        with pytest.raises(EngineError, match="belongs to another model, text, matrix or setting"):
            collect(other)
    stat = model.stat()
    with model.open("r+b") as file:  # changed in place, and its time put back
        file.seek(-1, 2)
        file.write(b"x")
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(EngineError, match="belongs to another model, text, matrix or setting"):
        collect(collection)
    assert collection.partial.read_bytes() == kept


def test_a_damaged_partial_file_is_not_trusted(demo_model: Path, tmp_path: Path) -> None:
    collection = cancelled_run(demo_model, tmp_path / "imatrix.gguf")
    kept = bytearray(collection.partial.read_bytes())
    with open_gguf(collection.partial) as gguf:
        states = [info for info in gguf.tensors if info.name.startswith("state.")]
    for info in (states[0], states[len(states) // 2], states[-1]):
        damaged = kept.copy()
        damaged[info.offset] ^= 1
        collection.partial.write_bytes(damaged)
        with pytest.raises(EngineError, match="is not as it was left"):
            collect(collection)
    collection.partial.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(SurgeonError, match=r"imatrix.gguf.partial: "):
        collect(collection)
    assert not collection.out.exists()


def test_a_matrix_of_the_partial_files_name_is_left_alone(demo_model: Path, tmp_path: Path, collected: Path) -> None:
    for resume in (False, True):
        collection = wanted(demo_model, tmp_path / "imatrix.gguf", resume=resume)
        collection.partial.write_bytes(collected.read_bytes())
        with pytest.raises(SurgeonError, match="is not an interrupted collection; move it away"):
            collect(collection)
        assert collection.partial.read_bytes() == collected.read_bytes()


def test_an_existing_output_is_left_alone(demo_model: Path, tmp_path: Path, collected: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    out.write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(SurgeonError, match="is a text, and an importance matrix never replaces one"):
            collect(wanted(demo_model, out, overwrite=overwrite))
    assert out.read_text() == "precious"
    out.write_bytes(collected.read_bytes())
    with pytest.raises(SurgeonError, match="already exists"):
        collect(wanted(demo_model, out))
    assert out.read_bytes() == collected.read_bytes()


def test_chunks_left_out_and_merged_make_the_whole(collected: Path, demo_model: Path, tmp_path: Path) -> None:
    first = wanted(demo_model, tmp_path / "first.gguf")
    first = replace(first, job=replace(first.job, n_chunks=1))
    collect(first)
    rest = wanted(demo_model, tmp_path / "rest.dat", merge=(first.out,), dat=True)
    rest = replace(rest, job=replace(rest.job, first_chunk=1, n_chunks=CHUNKS - 1))
    steps = [message.total for message in collect(rest) if isinstance(message, Step)]
    assert steps == [CHUNKS - 1] * (CHUNKS - 1)
    whole, merged = load_imatrix(collected), load_imatrix(rest.out)
    assert merged.is_legacy
    for name in whole.entries:
        assert merged.weights(name) == pytest.approx(whole.weights(name), rel=1e-4), name


def test_experts_together_see_what_the_router_sees(tmp_path: Path) -> None:
    from moe_probe import TOKENS
    from toy_architectures import EXPERTS, qwen3moe

    model = qwen3moe().write(tmp_path / "moe.gguf")
    probe = Path(__file__).with_name("moe_probe.py")
    done = subprocess.run(
        [sys.executable, str(probe), str(tmp_path / "sums.npz"), str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sums = np.load(tmp_path / "sums.npz")
    for layer in range(4):
        block = f"blk.{layer}.ffn_"
        router = sums[f"squares|{block}gate_inp.weight"]
        assert sums[f"count|{block}gate_inp.weight"].tolist() == [len(TOKENS)]
        for name in ("gate_exps", "up_exps"):
            experts, counts = sums[f"squares|{block}{name}.weight"], sums[f"count|{block}{name}.weight"]
            assert experts.shape == (EXPERTS, router.shape[1])
            assert counts.sum() == 2 * len(TOKENS)  # two experts are used for every token
            assert len(set(counts.tolist())) > 1
            assert experts.sum(axis=0) == pytest.approx(2 * router[0], rel=1e-5)
            assert (experts[counts == 0] == 0).all()
        assert sums[f"count|{block}down_exps.weight"].tolist() == sums[f"count|{block}gate_exps.weight"].tolist()
        assert (sums[f"squares|{block}down_exps.weight"].sum(axis=0) > 0).all()
