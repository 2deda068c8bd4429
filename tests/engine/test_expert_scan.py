"""From text to a pruned model: imatrix, stats, scan and prune on a toy with experts that reads text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_experts as toys
from engine_helpers import TEXT

from surgeon import cli
from surgeon.errors import SurgeonError, UsageError
from surgeon.imatrix.influence import load_influence
from surgeon.model.model import load_model


@pytest.fixture
def moe(tmp_path: Path, demo_model: Path) -> Path:
    return toys.write_reading(toys.mixtral(), tmp_path / "moe.gguf", demo_model)


def collected(model: Path) -> Path:
    out = model.with_name("im.gguf")
    words = ["imatrix", "-m", str(model), "-f", str(TEXT), "-o", str(out), "-c", "64", "--chunks", "4", "-t", "1"]
    assert cli.run(words) == 0
    return out


def test_from_text_to_a_pruned_model(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imatrix = collected(moe)
    influence = load_influence(imatrix, channels=False)
    assert influence is not None
    assert influence.experts is not None
    saliency = influence.experts.mean_saliency
    capsys.readouterr()

    assert cli.run(["stats", "--experts", "--json", str(imatrix)]) == 0
    rows = json.loads(capsys.readouterr().out)["experts"]
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert [sum(row["calls"]) for row in rows] == [256 * 2] * 3
    assert cli.run(["stats", "--experts", str(imatrix)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert cli.run(["show", "--imatrix", str(imatrix), str(moe)]) == 0
    (first, *_) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("blk.0 ")]
    idle = int((influence.experts.calls[0] == 0).sum())
    assert first.endswith(f"  idle {idle}, low 25% {100 * influence.experts.weight_of_least(0, 0.25):.1f}%")

    words = ["-m", str(moe), "-f", str(TEXT), "--imatrix", str(imatrix), "-c", "64", "--chunks", "2", "-t", "1"]
    assert cli.run(["expert-scan", *words, "--shares", "25,50", "--json"]) == 0
    cuts = json.loads(capsys.readouterr().out)["cuts"]
    assert [(cut["share"], cut["layer"]) for cut in cuts] == [(25, None), (50, None), *((25, n) for n in range(3))]
    assert 0 < cuts[0]["mean_kld"] < cuts[1]["mean_kld"]
    assert max(cut["mean_kld"] for cut in cuts[2:]) < cuts[1]["mean_kld"]
    least = {str(layer): sorted(np.argsort(saliency[layer])[:4].tolist()) for layer in range(3)}
    assert cuts[0]["experts"] == least

    pruned = tmp_path / "pruned.gguf"
    words = ["--imatrix", str(imatrix), "--prune-experts", "25%", str(moe), str(pruned), "COPY"]
    assert cli.run(["quantize", *words]) == 0
    told = load_model(pruned).file.kv["surgeon.pruned_experts"].decode()
    assert [text.partition(":")[0] for text in told] == ["0", "1", "2"]
    base = tmp_path / "base.kld"
    capsys.readouterr()
    words = ["perplexity", "-f", str(TEXT), "-c", "64", "--chunks", "2", "-t", "1", "--json"]
    assert cli.run([*words, "-m", str(moe), "--kl-divergence-base", str(base)]) == 0
    capsys.readouterr()
    assert cli.run([*words, "-m", str(pruned), "--kl-divergence-base", str(base), "--kl-divergence"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_kld"] == pytest.approx(cuts[0]["mean_kld"], rel=0.02, abs=1e-4)


def test_a_scan_is_kept_and_resumed(moe: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    words = ["-m", str(moe), "-f", str(TEXT), "--imatrix", str(collected(moe)), "-c", "64", "--chunks", "1", "-t", "1"]
    capsys.readouterr()
    assert cli.run(["expert-scan", *words, "--shares", "25", "--layers-at", "0"]) == 0
    first = capsys.readouterr().out
    (state,) = (home / "state").rglob("expert-scan/*.json")
    kept = json.loads(state.read_text())
    (key,) = kept["damages"]
    kept["damages"][key]["mean_kld"] = 7.5
    state.write_text(json.dumps(kept))
    assert cli.run(["expert-scan", *words, "--shares", "25", "--layers-at", "0"]) == 0
    assert "7.5" in capsys.readouterr().out
    assert cli.run(["expert-scan", *words, "--shares", "25", "--layers-at", "0", "--restart"]) == 0
    assert capsys.readouterr().out == first


def test_what_cannot_be_scanned(moe: Path, demo_model: Path, demo_imatrix: Path) -> None:
    imatrix = collected(moe)
    words = ["expert-scan", "-m", str(moe), "-f", str(TEXT), "--imatrix", str(imatrix)]
    with pytest.raises(UsageError, match="fewer than the 2 experts used would be left"):
        cli.run([*words, "--shares", "95"])
    with pytest.raises(UsageError, match="write percents separated by commas"):
        cli.run([*words, "--shares", "much"])
    words = ["expert-scan", "-m", str(demo_model), "-f", str(TEXT), "--imatrix", str(demo_imatrix)]
    with pytest.raises(SurgeonError, match="has no layer with experts"):
        cli.run(words)
    with pytest.raises(SurgeonError, match="has no calls of experts"):
        cli.run(["stats", "--experts", str(demo_imatrix)])
