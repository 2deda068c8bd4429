"""The figures themselves, against plain double-precision formulas and known values; no model runs here."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import multiple_choice_file

from surgeon.engine.child.evaluation import mt19937, task_files
from surgeon.engine.child.evaluation.base_file import BaseFile, BaseWriter, Decoded, encode, record_length
from surgeon.engine.child.evaluation.kl_divergence import compare
from surgeon.engine.child.evaluation.log_probabilities import by_slabs, negative_log_likelihood
from surgeon.engine.child.evaluation.perplexity import PerplexitySum
from surgeon.engine.child.evaluation.tasks import wilson_interval
from surgeon.engine.child.evaluation.windows import Rows
from surgeon.engine.child.llama.layouts import LAYOUTS, layout_for, wrong_default
from surgeon.engine.comparison import Comparison, statistics
from surgeon.engine.errors import EngineError
from surgeon.engine.frames import ProtocolError, read_message, write_message
from surgeon.engine.protocol import Engine, ImatrixJob, Snapshot, Step


def logits_and_targets(rows: int, n_vocab: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(rows * n_vocab)
    logits = (generator.standard_normal((rows, n_vocab)) * spread).astype(np.float32)
    return logits, generator.integers(0, n_vocab, rows, dtype=np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return (
        wide
        - np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - wide.max(axis=1, keepdims=True)
    )


def test_negative_log_likelihood() -> None:
    logits, targets = logits_and_targets(50, 333)
    expected = -log_softmax(logits)[np.arange(50), targets]
    assert negative_log_likelihood(logits, targets) == pytest.approx(expected, rel=1e-6)


def test_slabs_cover_all_rows_in_order() -> None:
    seen = list(by_slabs((10, 1 << 20), lambda rows: (rows.start, rows.stop)))
    assert seen == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


@pytest.mark.parametrize("n_vocab", [1, 2, 7, 256, 4096])
def test_saved_log_probabilities_are_right_to_half_a_step(n_vocab: int) -> None:
    logits, targets = logits_and_targets(20, n_vocab)
    records, nll = encode(logits, targets)
    assert records.shape == (20, record_length(n_vocab))
    head = np.ascontiguousarray(records[:, :4]).view("<f4")
    decoded = Decoded(records[:, 4 : 4 + n_vocab], head[:, 0], head[:, 1]).log_probabilities(slice(0, 20))
    expected = log_softmax(logits)
    kept = expected > expected.max(axis=1, keepdims=True) - 16
    assert np.abs(decoded - expected)[kept].max() <= 0.51 * 16 / 65535 + 1e-5
    assert nll == pytest.approx(-expected[np.arange(20), targets], rel=1e-5, abs=1e-6)


def test_probabilities_far_below_the_best_have_code_zero() -> None:
    logits = np.array([[0, -10, -16, -17, -100]], np.float32)
    records, _ = encode(logits, np.zeros(1, np.int32))
    assert records[0, 4:9].tolist() == [65535, round(65535 * 6 / 16), 0, 0, 0]


def rows_of(logits: np.ndarray, targets: np.ndarray) -> Rows:
    return Rows(0, 0, logits, targets, True)


def base_of(logits: np.ndarray, targets: np.ndarray) -> Decoded:
    records, _ = encode(logits, targets)
    head = np.ascontiguousarray(records[:, :4]).view("<f4")
    return Decoded(records[:, 4 : 4 + logits.shape[1]], head[:, 0].copy(), head[:, 1].copy())


def test_kl_divergence_is_the_textbook_one() -> None:
    base, targets = logits_and_targets(60, 500, spread=2)
    model = base + 0.3 * logits_and_targets(60, 501, spread=1)[0][:, :500]
    found = compare(rows_of(model, targets), base_of(base, targets))
    p, q = log_softmax(base), log_softmax(model)
    assert found.kld == pytest.approx((np.exp(p) * (p - q)).sum(axis=1), abs=2e-4)
    assert found.same_top.tolist() == (model.argmax(axis=1) == base.argmax(axis=1)).tolist()
    index = np.arange(60)
    assert found.delta_p == pytest.approx(np.exp(q[index, targets]) - np.exp(p[index, targets]), abs=2e-4)


def test_statistics_are_those_of_llama_perplexity() -> None:
    generator = np.random.default_rng(3)
    n = 400
    base = generator.gamma(2, 1.5, n)
    nll = base + 0.1 * generator.standard_normal(n)
    kld = generator.gamma(1, 0.01, n)
    same = generator.random(n) < 0.9
    values = statistics(Comparison(nll, base, kld, same))
    assert values["ppl"] == pytest.approx(math.exp(nll.mean()))
    assert values["ppl_error"] == pytest.approx(math.exp(nll.mean()) * nll.std() / math.sqrt(n - 1))
    assert values["correlation"] == pytest.approx(np.corrcoef(nll, base)[0, 1])
    assert values["ln_ppl_ratio_error"] == pytest.approx((nll - base).std() / math.sqrt(n - 1))
    assert values["ppl_ratio"] == pytest.approx(values["ppl"] / values["ppl_base"])
    assert values["mean_kld_error"] == pytest.approx(kld.std() / math.sqrt(n - 1))
    ordered = np.sort(kld)
    assert values["median_kld"] == pytest.approx((ordered[199] + ordered[200]) / 2)
    assert values["kld_99"] == pytest.approx(ordered[395] + 0.01 * (ordered[396] - ordered[395]), rel=1e-5)
    assert (values["kld_min"], values["kld_max"]) == (ordered[0], ordered[-1])
    difference = np.exp(-nll) - np.exp(-base)
    assert values["rms_delta_p"] == pytest.approx(math.sqrt((difference**2).mean()))
    assert values["same_top"] == same.mean()


def test_perplexity_sums_are_those_of_the_whole() -> None:
    nll = np.random.default_rng(5).gamma(2, 2, 300)
    sums = PerplexitySum()
    for part in np.split(nll, 3):
        sums.add(part)
    assert sums.ppl == pytest.approx(math.exp(nll.mean()))
    assert sums.ppl_error == pytest.approx(math.exp(nll.mean()) * nll.std() / math.sqrt(299))


def test_base_file_keeps_tokens_and_records(tmp_path: Path) -> None:
    logits, _ = logits_and_targets(3, 33)
    chunks = np.arange(8, dtype=np.int32).reshape(1, 8)
    path = tmp_path / "base.kld"
    with BaseWriter(str(path), chunks, 33) as writer:
        writer.add(Rows(0, 4, logits, chunks[0, 5:], True))
        writer.finish()
    assert path.stat().st_size == 8 + 12 + 4 * 8 + 2 * 3 * (34 + 4)
    saved = BaseFile(str(path))
    assert saved.tokens.tolist() == chunks.tolist()
    kept = saved.rows(0, 0, 3).log_probabilities(slice(0, 3))
    assert kept == pytest.approx(np.maximum(log_softmax(logits), kept.min(axis=1, keepdims=True)), abs=2e-4)


def test_absurd_base_file(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    path.write_bytes(b"_logits_" + np.array([512, -1, 4], "<i4").tobytes())
    with pytest.raises(EngineError, match="absurd sizes"):
        BaseFile(str(path))


def test_mersenne_twister_is_the_standard_one() -> None:
    generator = mt19937.Mt19937(5489)
    for _ in range(9999):
        generator.next()
    assert generator.next() == 4123659995  # the value the C++ standard demands of the 10000th


def test_a_number_of_tasks_below_one_means_all(tmp_path: Path) -> None:
    file = tmp_path / "hellaswag.txt"
    file.write_text("a: b\n0\nc\nd\ne\nf\n" * 3)
    assert len(task_files.hellaswag(str(file), -1)) == len(task_files.hellaswag(str(file), 0)) == 3
    assert len(task_files.hellaswag(str(file), 2)) == 2


def test_a_file_of_no_tasks_is_refused(tmp_path: Path) -> None:
    file = multiple_choice_file(tmp_path / "none.bin", [])
    with pytest.raises(EngineError, match="it holds no task"):
        task_files.multiple_choice(str(file), 0)


def test_task_choice_is_libstdcxx_s() -> None:
    # 1791095845 · 10 / 2^32 = 4.17 and 4282876139 · 9 / 2^32 = 8.97, the first two outputs for seed 1.
    assert mt19937.shuffled(2, 10) == [4, 9]
    assert sorted(mt19937.shuffled(400, 400)) == list(range(400))
    # The last number takes the place of the one taken out: 4 is 9 now, and the second draw is index 8.
    assert mt19937.sampled(2, 10) == [4, 8]
    assert mt19937.sampled(0, 5) == mt19937.sampled(5, 5) == [0, 1, 2, 3, 4]


def test_wilson_interval() -> None:
    assert wilson_interval(1, 1) == pytest.approx((0.206549, 1), abs=1e-6)  # the first line of llama-perplexity's table
    assert wilson_interval(77, 400) == pytest.approx((0.156861, 0.233989), abs=1e-6)


def test_layouts_are_for_known_versions_only() -> None:
    assert layout_for("0.6.0-dev") is LAYOUTS[0]
    assert layout_for("v0.5.1") is layout_for("0.2.0-dev") is LAYOUTS[1]
    assert [layout_for(text) for text in ("0.7.0", "0.1.9", "1.0", "b11549", "")] == [None] * 5


def test_defaults_in_the_wrong_place_are_seen() -> None:
    params = LAYOUTS[0].context_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 512, 2048, 512, 1
    params.type_k = params.type_v = 1
    assert wrong_default(params) == "offload_kqv = False"
    params.offload_kqv = True
    assert wrong_default(params) is None


def test_messages_arrive_as_they_were_sent() -> None:
    stream = io.BytesIO()
    arrays = {"squares:a": np.arange(6, dtype=np.float32).reshape(2, 3), "layers": np.zeros((0, 5))}
    for message in (Engine("x", 3, 99), ImatrixJob("m", "t"), Step(1, 2, {"ppl": 1.5})):
        write_message(stream, message)
    write_message(stream, Snapshot(7, 512, arrays))
    stream.seek(0)
    assert [read_message(stream) for _ in range(3)] == [
        Engine("x", 3, 99),
        ImatrixJob("m", "t"),
        Step(1, 2, {"ppl": 1.5}),
    ]
    snapshot = read_message(stream)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.arrays["squares:a"].tolist() == arrays["squares:a"].tolist()
    assert snapshot.arrays["layers"].shape == (0, 5)
    assert read_message(stream) is None


def test_a_cut_off_message_is_an_error() -> None:
    stream = io.BytesIO()
    write_message(stream, Snapshot(1, 2, {"a": np.ones(4)}))
    whole = stream.getvalue()
    for length in range(1, len(whole)):
        with pytest.raises((ProtocolError, ValueError, KeyError)):
            read_message(io.BytesIO(whole[:length]))


def test_noise_is_no_message() -> None:
    with pytest.raises(ProtocolError, match="a header of"):
        read_message(io.BytesIO(b"llama_model_loader: ..."))
