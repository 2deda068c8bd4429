"""Layer influence beside an importance matrix: stored where llama-quantize does not look, merged truthfully."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from surgeon.imatrix.files import load_imatrix, save_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.imatrix.influence import Influence, load_influence, merged, save, with_weight_zd
from surgeon.imatrix.rank_correlation import spearman
from surgeon.imatrix.weight_scores import layer_zd, weight_zd
from surgeon.model.model import load_model


def collected(seed: int, tokens: int = 10) -> tuple[Imatrix, Influence]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((tokens, 8)).astype(np.float32)
    y = x + generator.standard_normal((tokens, 8)).astype(np.float32)
    entry = ImatrixEntry((x * x).sum(axis=0)[None], np.array([tokens]))
    cosines = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    row = [cosines.sum(), (x * y).sum(), (x * x).sum(), (y * y).sum(), tokens]
    layers = np.array([row, [0, 0, 0, 0, 0]])
    name = "blk.0.attn_q.weight"
    imatrix = Imatrix(Path("x"), {name: entry}, (f"text-{seed}",), 1, tokens)
    return imatrix, Influence(layers, {name: x.sum(axis=0)[None]})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    imatrix, influence = collected(1)
    influence = with_weight_zd(influence, np.array([0.25, np.nan]))
    save(imatrix, influence, tmp_path / "i.gguf")
    back = load_influence(tmp_path / "i.gguf")
    assert back is not None
    assert back.layers == pytest.approx(influence.layers, rel=1e-6)
    assert back.weight_zd is not None
    assert back.weight_zd == pytest.approx([0.25, np.nan], nan_ok=True)
    name = "blk.0.attn_q.weight"
    assert back.channel_sums[name].tolist() == influence.channel_sums[name].tolist()
    again = load_imatrix(tmp_path / "i.gguf")
    assert list(again.entries) == [name]
    assert again.entries[name].sums.tolist() == imatrix.entries[name].sums.tolist()


def test_without_influence_the_file_is_llama_imatrix_s(tmp_path: Path, demo_imatrix: Path) -> None:
    imatrix = load_imatrix(demo_imatrix)
    save(imatrix, None, tmp_path / "a.gguf")
    save_gguf(imatrix, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert load_influence(tmp_path / "a.gguf") is None


def test_old_format_has_none(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(b"\1\0\0\0")
    assert load_influence(tmp_path / "i.dat") is None


def test_llama_quantize_would_not_see_the_extra_tensors(tmp_path: Path) -> None:
    from surgeon.gguf.file import open_gguf

    save(*collected(1), tmp_path / "i.gguf")
    with open_gguf(tmp_path / "i.gguf") as gguf:
        extra = [info.name for info in gguf.tensors][2:]
    assert extra == ["blk.0.attn_q.weight.in_sum", "surgeon.layers"]
    assert not any(name.endswith((".in_sum2", ".counts")) for name in extra)


def test_scores() -> None:
    layers = np.array([[9.0, 6.0, 4.0, 16.0, 10.0], [0, 0, 0, 0, 0]])
    influence = Influence(layers, {"w": np.array([[5.0, -10.0]], np.float32)})
    assert influence.block_influence == pytest.approx([0.1, np.nan], nan_ok=True)
    assert influence.layer_input_modification == pytest.approx([-0.75, np.nan], nan_ok=True)


def test_merging_adds_up() -> None:
    (a, ia), (b, ib) = collected(1), collected(2)
    imatrix, influence = merged([(a, ia), (b, ib)])
    name = "blk.0.attn_q.weight"
    assert imatrix.datasets == ("text-1", "text-2")
    assert imatrix.entries[name].counts.tolist() == [20]
    assert influence is not None
    assert influence.layers == pytest.approx(ia.layers + ib.layers)
    assert influence.channel_sums[name] == pytest.approx(ia.channel_sums[name] + ib.channel_sums[name])


def test_channel_sums_do_not_survive_a_part_without_them() -> None:
    (a, ia), (b, _) = collected(1), collected(2)
    imatrix, influence = merged([(a, ia), (b, None)])
    assert imatrix.entries["blk.0.attn_q.weight"].counts.tolist() == [20]
    assert influence is not None
    assert influence.channel_sums == {}
    assert influence.layers[0, 4] == 10


def test_influences_of_other_models_are_not_added() -> None:
    a, ia = collected(1)
    _, influence = merged([(a, ia), (a, Influence(np.zeros((7, 5))))])
    assert influence is None


def test_weights_zd_of_the_bundled_model(demo_model: Path) -> None:
    model = load_model(demo_model)
    layer = model.layers[3]
    parts = [
        model.file.data(tensor.info).view("<f2").astype(np.float64) for tensor in layer.tensors if len(tensor.ne) > 1
    ]
    weights = np.concatenate(parts)
    expected = ((weights - weights.mean()) / weights.std() > 1).mean()
    assert layer_zd(model, layer) == pytest.approx(expected, abs=1e-5)
    assert [number for number, _ in weight_zd(model)] == list(range(12))


def test_spearman() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 − 6 Σd² / (n (n² − 1)) with d = 0, 1, −1, 2, −2
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 6, 5]) == pytest.approx(1 - 6 * (0 + 1 + 1 + 1 + 1) / 120)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(np.sqrt(3) / 2)
    assert np.isnan(spearman([1, 1], [1, 2]))
    with pytest.raises(ValueError, match="values"):
        spearman([1], [1, 2])
