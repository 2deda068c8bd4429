"""Files of second moments: what is stored comes back, sums add up, damage is told."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, toy_llama
from moments_toy import HEAD, Toy, toy_moments

from surgeon.engine.errors import EngineError
from surgeon.engine.raw_moments import Contents, RawInput, RawMoments, panels, raw_path, remove_raw, write
from surgeon.errors import SurgeonError
from surgeon.measure.collecting.moments_run import merge_moments
from surgeon.model.model import load_model
from surgeon.moments import account
from surgeon.moments.files import is_moments, load_moments, write_moments
from surgeon.moments.moments import MomentsError
from surgeon.moments.sources import Collected, Renumbered
from surgeon.moments.triangle import mirror, pack, packed_length, unpack


def samples(columns: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs, one column always zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, columns)) @ rng.standard_normal((columns, columns)) * np.exp(rng.normal(size=columns))
    x[:, columns // 3] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize(("columns", "block"), [(64, 0), (300, 0), (300, 128)])
def test_float16_correlations_keep_the_matrix(columns: int, block: int) -> None:
    x = samples(columns)
    blocks = [x[:, i : i + (block or columns)] for i in range(0, columns, block or columns)]
    whole = [part.T @ part for part in blocks]
    diagonal, correlations = pack([np.triu(part) for part in whole])
    assert correlations.dtype == np.float16
    assert len(correlations) == packed_length(columns, block)
    assert len(pack([part.T @ part for part in blocks])[0]) == columns
    for part, back in zip(whole, unpack(diagonal, correlations, block), strict=True):
        root = np.sqrt(np.diagonal(part))
        assert np.array_equal(np.diagonal(back), np.diagonal(part))
        assert np.array_equal(back, back.T)
        assert np.abs(back - part).max() > 0  # it is not float32
        assert (np.abs(back - part) <= 2.5e-4 * np.outer(root, root) + 1e-30).all()


def test_stored_again_the_correlations_are_the_same() -> None:
    diagonal, correlations = pack([(x := samples(200)).T @ x])
    again = pack(unpack(diagonal, correlations, 0))
    assert np.array_equal(again[0], diagonal)
    assert np.array_equal(again[1], correlations)


def test_mirror_fills_the_lower_triangle() -> None:
    square = np.random.default_rng(1).standard_normal((601, 601)).astype(np.float32)
    upper = np.triu(square)
    mirror(square)
    assert np.array_equal(square, upper + np.triu(upper, 1).T)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    toy = Toy({"blk.0.attn_q.weight": samples(64), "blk.0.ffn_down.weight": samples(96, 1)}, halves=2)
    toy.users["blk.0.attn_k.weight"] = "blk.0.attn_q.weight"
    path = toy_moments(tmp_path / "m.gguf", toy)
    moments = load_moments(path)
    assert is_moments(path)
    assert moments.head == HEAD
    assert moments.users == toy.users
    shared = moments.of("blk.0.attn_k.weight")
    assert shared is moments.inputs["blk.0.attn_q.weight"]
    assert moments.of("output.weight") is None
    for name, one in moments.inputs.items():
        x = toy.rows[name]
        assert one.tokens.tolist() == [[200, 200]]
        assert moments.tokens_per_column(one).tolist() == [400 / x.shape[1]]
        scale = np.sqrt(np.outer((x**2).mean(0), (x**2).mean(0))).max()
        assert np.abs(moments.blocks(one)[0] - x.T @ x / len(x)).max() < 1e-3 * scale
        first = x[:200]
        assert np.abs(moments.blocks(one, half=0)[0] - first.T @ first / 200).max() < 2e-3 * scale
    weights = moments.as_imatrix.weights("blk.0.attn_k.weight")
    assert weights == pytest.approx((toy.rows["blk.0.attn_q.weight"] ** 2).mean(0), rel=1e-5)


def test_the_digest_is_of_the_numbers(tmp_path: Path) -> None:
    rows = {"blk.0.attn_q.weight": samples(64)}
    one = load_moments(toy_moments(tmp_path / "a.gguf", Toy(rows)))
    same = load_moments(toy_moments(tmp_path / "b.gguf", Toy(rows)))
    other = load_moments(toy_moments(tmp_path / "c.gguf", Toy({"blk.0.attn_q.weight": samples(64, 5)})))
    assert one.digest == same.digest
    assert len({one.digest, other.digest, "0" * 64}) == 3


def test_files_add_up(tmp_path: Path) -> None:
    x, y, z = samples(64, 1), samples(64, 2), samples(32, 3)
    toy_moments(tmp_path / "a.gguf", Toy({"blk.0.attn_q.weight": x}))
    toy_moments(tmp_path / "b.gguf", Toy({"blk.0.attn_q.weight": y, "blk.1.attn_q.weight": z}))
    assert [step.done for step in merge_moments([tmp_path / "a.gguf", tmp_path / "b.gguf"], tmp_path / "sum.gguf")] == [
        1,
        2,
    ]
    merged = load_moments(tmp_path / "sum.gguf")
    both = np.concatenate([x, y])
    one = merged.inputs["blk.0.attn_q.weight"]
    assert one.tokens.tolist() == [[400, 400]]
    root = np.sqrt((both**2).mean(0))
    assert (np.abs(merged.blocks(one)[0] - both.T @ both / 800) <= 1e-3 * np.outer(root, root) + 1e-30).all()
    assert merged.inputs["blk.1.attn_q.weight"].tokens.sum() == 400
    assert merged.head.chunk_count == 2 * HEAD.chunk_count
    assert merged.head.datasets == (*HEAD.datasets, *HEAD.datasets)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    toy_moments(paths[0], Toy({"blk.0.attn_q.weight": samples(64)}))
    for head, message in ((replace(HEAD, model="other"), "different models"), (replace(HEAD, block=32), "blocks of 0")):
        paths[1].unlink(missing_ok=True)
        toy_moments(paths[1], Toy({"blk.0.attn_q.weight": samples(64)}, block=head.block), head)
        with pytest.raises(MomentsError, match=message):
            list(merge_moments(paths, tmp_path / "sum.gguf"))
    paths[1].unlink()
    toy_moments(paths[1], Toy({"blk.0.attn_q.weight": samples(32)}))
    with pytest.raises(MomentsError, match="has 32 columns in one file and 64 in another"):
        list(merge_moments(paths, tmp_path / "sum.gguf"))
    assert not (tmp_path / "sum.gguf").exists()


def test_layers_are_renumbered_like_the_models(tmp_path: Path) -> None:
    rows = {"output.weight": samples(64, 9)} | {f"blk.{layer}.attn_q.weight": samples(64, layer) for layer in range(3)}
    before = load_moments(toy_moments(tmp_path / "a.gguf", Toy(rows)))
    list(write_moments(tmp_path / "b.gguf", HEAD, [Renumbered(before, {0: 0, 2: 1})]))
    after = load_moments(tmp_path / "b.gguf")
    assert sorted(after.users) == ["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"]
    old, new = before.inputs["blk.2.attn_q.weight"], after.inputs["blk.1.attn_q.weight"]
    assert np.array_equal(before.blocks(old)[0], after.blocks(new)[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "cut short|ends|truncated|beyond|file"),
        (lambda data: data.replace(b"moments.block", b"moments.blook"), "moments.block is missing"),
        (lambda data: data.replace(b"q.weight.tokens", b"q.weight.tokenz"), "tensor .*tokens' is missing"),
        (lambda data: data.replace(b"general.type", b"general.tipe"), "not a file of second moments"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = toy_moments(tmp_path / "m.gguf", Toy({"blk.0.attn_q.weight": samples(64)}))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SurgeonError, match=message):
        load_moments(path)


def test_values_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = toy_moments(tmp_path / "m.gguf", Toy({"blk.0.attn_q.weight": samples(64)}))
    moments = load_moments(path)
    infos = {info.name.rpartition(".")[2]: info for info in moments.file.tensors}
    one, whole = moments.inputs["blk.0.attn_q.weight"], path.read_bytes()
    for tensor, value, message in (
        ("corr", struct.pack("<e", 1.5), "not a correlation"),
        ("corr", struct.pack("<e", float("nan")), "not a correlation"),
        ("sum2", struct.pack("<f", -1.0), "not a sum of squares"),
        ("sum2", struct.pack("<f", float("inf")), "not a sum of squares"),
    ):
        at = infos[tensor].offset
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(MomentsError, match=message):
            load_moments(path).blocks(one)


def test_other_files_are_no_moments(tmp_path: Path, demo_imatrix: Path) -> None:
    assert not is_moments(demo_imatrix)
    with pytest.raises(MomentsError, match="not a file of second moments"):
        load_moments(demo_imatrix)
    build_gguf(tmp_path / "x.gguf", {"general.type": "moments", "moments.version": 2}, {})
    with pytest.raises(MomentsError, match="missing"):
        load_moments(tmp_path / "x.gguf")


@pytest.mark.parametrize("block", [0, 256])
def test_panels_make_the_matrix(tmp_path: Path, block: int) -> None:
    columns = 450
    squares = [samples(columns, half).T @ samples(columns, half) for half in (0, 1)]
    values = [square[a:b, a:c] for square in squares for a, b, c in panels(columns, block)]
    one = RawInput("blk.0.attn_q.weight", ["blk.0.attn_q.weight"], columns, 1, [[5, 6]])
    write(tmp_path / "raw", Contents(3, block, 2, [one]), [np.ascontiguousarray(part) for part in values])
    source = Collected(RawMoments(tmp_path / "raw"))
    found = source.inputs["blk.0.attn_q.weight"]
    assert found.tokens.tolist() == [[5, 6]]
    for half in (0, 1):
        blocks = source.sums(found, 0, half)
        assert sum(map(len, blocks)) == columns
        start = 0
        for part in blocks:
            span = slice(start, start + len(part))
            assert np.array_equal(np.triu(part), np.triu(squares[half][span, span]))
            start += len(part)


def test_raw_sums_that_are_damaged_are_told(tmp_path: Path) -> None:
    one = RawInput("w", ["w"], 32, 1, [[1]])
    path = raw_path(str(tmp_path / "m.partial"), 4)
    write(path, Contents(4, 0, 1, [one], "mine"), [np.ones((32, 32), np.float32)])
    assert RawMoments(path, "mine").panels(one, 0, 0)[0].sum() == 1024
    with pytest.raises(EngineError, match="second moments of another collection"):
        RawMoments(path, "yours")
    whole = path.read_bytes()
    for at in (whole.index(b"[[1]]") + 2, len(whole) // 2, len(whole) - 1):  # the tokens, a panel, the checksum
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(EngineError, match="not as they were left"):
            RawMoments(path, "mine")
    path.write_bytes(whole[:-4])
    with pytest.raises(EngineError, match="cut off"):
        RawMoments(path, "mine")
    path.write_bytes(b"rubbish")
    with pytest.raises(EngineError, match="cannot be read"):
        RawMoments(path)
    other = raw_path(str(tmp_path / "m.partial"), 8)
    other.write_bytes(b"")
    remove_raw(str(tmp_path / "m.partial"), 8)
    assert [file.name for file in tmp_path.iterdir()] == ["m.partial.8"]


def test_the_account_is_that_of_the_file(demo_model: Path, tmp_path: Path) -> None:
    model = load_model(demo_model)
    found = account.reckon(model)
    assert found.inputs == 4 * 12 + 1
    rows = {f"{number}": samples(one.columns) for number, one in enumerate(account.distinct_inputs(model))}
    path = toy_moments(tmp_path / "m.gguf", Toy(rows))
    assert found.file == pytest.approx(path.stat().st_size, rel=0.01)
    halves, blocks = account.reckon(model, halves=1), account.reckon(model, block=256)
    assert halves.memory * 2 == found.memory
    assert blocks.file < 0.6 * found.file
    few = account.reckon(model, layers={0, 1})
    assert few.inputs == 2 * 4
    assert few.disk == few.memory + few.file


def test_what_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = account.reckon(load_model(toy_llama(tmp_path / "toy.gguf")))
    account.refuse_too_large(found, tmp_path, 2)
    monkeypatch.setattr(account, "available_memory", lambda: found.memory - 1)
    with pytest.raises(
        SurgeonError, match=r"[KM]iB are free: collect .* in 2 passes .*--layers 0-0, .*--moments-block"
    ):
        account.refuse_too_large(found, tmp_path, 2)
