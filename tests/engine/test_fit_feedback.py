"""`surgeon fit --moments`: errors, probes, recipe and file with the feedback encoder."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_helpers import TEXT

from surgeon.cli import run
from surgeon.engine.protocol import Engine
from surgeon.fit.cost_model import STOCK
from surgeon.fit.feedback_errors import FeedbackErrors
from surgeon.fit.tensor_errors import measure_errors
from surgeon.gguf.file import open_gguf
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.fitting.sensitivities import Sensitivities
from surgeon.measure.probing import Prober, Text
from surgeon.model.model import load_model
from surgeon.moments.moments import Moments
from surgeon.plan.recipe import load_recipe
from surgeon.resolve.tensor_facts import facts_of


def test_errors_with_feedback_are_smaller_and_of_the_same_kind(
    demo_model: Path, demo_imatrix: Path, demo_moments: Moments
) -> None:
    """Without correlations (shrink 1) the sweep has nothing to feed forward: the stock error, up to the sample."""
    model, imatrix, never = load_model(demo_model), load_imatrix(demo_imatrix), threading.Event()
    types = ("Q2_K", "Q4_K")
    with model.file:
        by_name = facts_of(model).by_name
        wanted = [(by_name[name], types) for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")]
        weights = demo_moments.as_imatrix
        stock = dict(measure_errors(model, wanted, weights, never))
        with_feedback = [FeedbackErrors(model, demo_moments, weights, shrink, 1, never) for shrink in (1.0, 0.2)]
        diagonal, half = (dict(one.measure(wanted)) for one in with_feedback)
        embedding = [(by_name["token_embd.weight"], types)]
        own = dict(FeedbackErrors(model, demo_moments, imatrix, 0.5, 1, never).measure(embedding))
        unweighted = dict(measure_errors(model, embedding, None, never))
    for name, found in stock.items():
        for kind, error in found.items():
            assert half[name][kind] < 0.8 * error
            assert diagonal[name][kind] == pytest.approx(error, rel=0.15)
    assert own["token_embd.weight"].keys() == unweighted["token_embd.weight"].keys()
    assert own != unweighted


def test_a_fit_with_feedback_is_written_as_it_was_measured(
    two_layers: Path, demo_imatrix: Path, demo_moments: Moments, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("surgeon.measure.probing.cache_folder", lambda: tmp_path / "cache")
    held_out, recipe, out = tmp_path / "other.txt", tmp_path / "fit.toml", tmp_path / "fit.gguf"
    held_out.write_text(TEXT.read_text()[3000:])
    words = ["fit", str(two_layers), "-f", str(TEXT), "-c", "64", "--chunks", "1", "-t", "1"]
    words += ["--types", "Q2_K,Q4_K,Q6_K", "--imatrix", str(demo_imatrix), "--moments", str(demo_moments.path)]
    words += ["-o", str(recipe), "--write", str(out), "--like", "Q3_K_M"]
    words += ["--held-out", str(held_out), "--held-out-chunks", "2"]
    assert run([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    mix = found["mix"]["type"]
    assert set(found["held_out"]) == {"fit", mix, f"{mix} stock"}
    assert found["fit"]["bytes"] == out.stat().st_size
    saved = load_recipe(recipe)
    assert saved.moments_digest == demo_moments.digest
    with open_gguf(out) as file:
        assert any("moments" in key for key in file.kv)
    applied = tmp_path / "applied.gguf"
    assert run(["apply", str(recipe), str(two_layers), str(applied)]) == 0
    assert applied.read_bytes() == out.read_bytes()
    capsys.readouterr()

    base = tmp_path / "held-out.base"
    shared = ["-f", str(held_out), "-c", "64", "--chunks", "2", "-t", "1"]
    assert run(["perplexity", "-m", str(two_layers), *shared, "--kl-divergence-base", str(base)]) == 0
    capsys.readouterr()
    again = ["perplexity", "-m", str(out), "-t", "1", "--kl-divergence-base", str(base), "--kl-divergence", "--json"]
    assert run(again) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["mean_kld"] == found["held_out"]["fit"]["mean_kld"]
    assert np.isfinite(found["fit"]["predicted"]["kld"])


def test_sensitivities_of_the_stock_encoder_are_not_those_of_feedback(
    demo_model: Path, demo_imatrix: Path, demo_moments: Moments
) -> None:
    model, imatrix = load_model(demo_model), load_imatrix(demo_imatrix)
    with model.file:
        stock, feedback, other = (
            Sensitivities(Prober(model, imatrix, Engine(), moments, shrink), Text(TEXT, 64, 1))
            for moments, shrink in ((None, None), (demo_moments, None), (demo_moments, 0.25))
        )
    assert len({one._errors_file for one in (stock, feedback, other)}) == 3
    assert stock._encoder == STOCK
