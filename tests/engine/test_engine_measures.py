"""What llama.cpp's tools measure, measured by ours: checked against closed forms and against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_helpers import TEXT, Base, figures, multiple_choice_file, run

from surgeon.engine.child.evaluation.base_file import BaseFile
from surgeon.engine.protocol import (
    BenchJob,
    DivergenceJob,
    Finished,
    LayerDamage,
    Loaded,
    PerplexityJob,
    PruneScanJob,
    Started,
    Step,
    TaskJob,
)


def test_perplexity_tells_what_it_runs(demo_model: Path) -> None:
    messages = run(PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, n_chunks=2))
    assert [type(message) for message in messages] == [Loaded, Started, Step, Step, Finished]
    loaded, started = messages[0], messages[1]
    assert isinstance(loaded, Loaded)
    assert isinstance(started, Started)
    assert (loaded.n_layer, loaded.n_vocab, loaded.n_params, loaded.threads) == (12, 4096, 11_540_736, 1)
    assert (started.total, started.n_ctx) == (2, 64)
    assert started.n_tokens > 128


def test_perplexity_is_that_of_its_own_saved_log_probabilities(base: Base) -> None:
    saved = BaseFile(str(base.path))
    assert (saved.n_ctx, saved.n_vocab, saved.n_chunks, saved.rows_per_chunk) == (64, 4096, 4, 31)
    nll = []
    for chunk in range(4):
        decoded = saved.rows(chunk, 0, 31)
        log_p = decoded.log_probabilities(slice(0, 31)).astype(np.float64)
        nll.append(-log_p[np.arange(31), saved.tokens[chunk, 33:]])
        assert np.exp(log_p).sum(axis=1) == pytest.approx(1, abs=2e-2)  # codes end at e^-16
    joined = np.concatenate(nll)
    assert base.values["n_tokens"] == 4 * 31
    assert base.values["ppl"] == pytest.approx(np.exp(joined.mean()), rel=2e-4)
    error = joined.std() / np.sqrt(len(joined) - 1)
    assert base.values["ppl_error"] == pytest.approx(error * base.values["ppl"], rel=1e-3)


def test_chunks_longer_than_the_batch_give_the_same_perplexity(demo_model: Path, base: Base) -> None:
    job = PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, n_chunks=4, n_batch=24, n_ubatch=24)
    assert figures(job)["ppl"] == pytest.approx(base.values["ppl"], rel=1e-4)


def test_strided_windows_score_the_last_tokens_of_each(demo_model: Path) -> None:
    values = figures(PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, n_chunks=3, stride=16))
    assert values["n_tokens"] == 3 * 16
    assert 5 < values["ppl"] < 4096


def test_a_model_does_not_diverge_from_itself(demo_model: Path, base: Base) -> None:
    values = figures(DivergenceJob(str(demo_model), str(base.path), text=str(TEXT)))
    assert values["mean_kld"] == pytest.approx(0, abs=1e-5)
    assert values["rms_delta_p"] < 1e-4
    assert values["same_top"] > 0.98
    assert values["correlation"] == pytest.approx(1, abs=1e-6)
    assert values["ppl"] == pytest.approx(base.values["ppl"], rel=1e-6)
    assert values["n_tokens"] == 4 * 31


@pytest.fixture(scope="session")
def scan(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], LayerDamage]:
    path = tmp_path_factory.mktemp("scan") / "base.kld"
    layer_sets = [[0], [6], [11], [8, 9]]
    job = PruneScanJob(str(demo_model), str(TEXT), layer_sets, n_ctx=64, n_chunks=4, base=str(path))
    return {tuple(message.layers): message for message in run(job) if isinstance(message, LayerDamage)}


@pytest.mark.parametrize("layers", [(0,), (6,), (11,), (8, 9)])
def test_a_layer_passed_over_does_the_damage_of_a_layer_pruned(
    layers: tuple[int, ...], scan: dict[tuple[int, ...], LayerDamage], demo_model: Path, base: Base, tmp_path: Path
) -> None:
    pruned = tmp_path / "pruned.gguf"
    write_pruned(demo_model, layers, pruned)
    values = figures(DivergenceJob(str(pruned), str(base.path)))
    damage = scan[layers]
    assert values["mean_kld"] > 0.01
    assert damage.mean_kld == pytest.approx(values["mean_kld"], rel=2e-3)
    assert damage.ppl == pytest.approx(values["ppl"], rel=2e-3)
    assert damage.same_top == pytest.approx(values["same_top"], abs=0.02)


def write_pruned(source: Path, layers: tuple[int, ...], out: Path) -> None:
    from surgeon.commands.quantize import main

    assert main(["--prune-layers", ",".join(map(str, layers)), str(source), str(out), "COPY"]) == 0


def test_layer_zero_is_the_one_that_matters(scan: dict[tuple[int, ...], LayerDamage]) -> None:
    assert scan[(0,)].mean_kld > 10 * scan[(11,)].mean_kld > 10 * scan[(6,)].mean_kld / 3


PROSE = "The old man went down to the harbour and"
GIBBERISH = ("xq zzv kkw qqj vvx zzq", "of of the the and and of of", ") ) ( ; ; ] [ }")


def hellaswag_file(path: Path) -> Path:
    endings = ["looked out at the sea for a long time.", *GIBBERISH]
    lines: list[str] = []
    for gold in range(4):
        turned = endings[-gold:] + endings[:-gold] if gold else endings
        lines += [PROSE, str(gold), *turned]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_hellaswag_prefers_english(demo_model: Path, tmp_path: Path) -> None:
    file = hellaswag_file(tmp_path / "tasks.txt")
    values = figures(TaskJob(str(demo_model), "hellaswag", str(file), n_tasks=400))
    assert (values["n_tasks"], values["score"], values["n_correct"]) == (4, 100.0, 4)
    assert values["score_low"] < 60 < values["score_high"]


def test_packs_of_tasks_score_as_single_ones(demo_model: Path, tmp_path: Path) -> None:
    file = hellaswag_file(tmp_path / "tasks.txt")
    singly = figures(TaskJob(str(demo_model), "hellaswag", str(file), n_batch=32))
    together = figures(TaskJob(str(demo_model), "hellaswag", str(file)))
    assert singly == together


def test_winogrande_prefers_english(demo_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.csv"
    file.write_text(
        '0,"He opened the _ and went into the house, and shut it behind him.",door,of,1\n'
        "1,She took the _ from the table and read it.,into,letter,2\n"
        "2,this last line is not read because llama-perplexity drops it: _ .,a,b,1\n"
    )
    values = figures(TaskJob(str(demo_model), "winogrande", str(file)))
    assert (values["n_tasks"], values["score"], values["score_corrected"]) == (2, 100.0, 100.0)


def test_multiple_choice_prefers_english(demo_model: Path, tmp_path: Path) -> None:
    tasks = [
        (PROSE, ["sat down upon the wall.", GIBBERISH[0]], 0),
        (PROSE, [*GIBBERISH, "saw the boat come in.", GIBBERISH[0] + " w"], 3),
        (PROSE, [GIBBERISH[0], "was very tired."], 0),  # labelled wrongly on purpose
    ]
    file = multiple_choice_file(tmp_path / "tasks.bin", tasks)
    values = figures(TaskJob(str(demo_model), "multiple-choice", str(file)))
    assert (values["n_tasks"], values["n_correct"]) == (3, 2)
    assert values["random_chance"] == pytest.approx(100 * 3 / 9)
    assert values["score_error"] == pytest.approx(100 * np.sqrt(2 / 3 * 1 / 3 / 2))


def test_bench_gives_llama_bench_names_and_speeds(demo_model: Path) -> None:
    values = figures(BenchJob(str(demo_model), [[16, 0], [0, 4], [8, 2]], repetitions=2, depth=4))
    assert [test["test"] for test in values["tests"]] == ["pp16 @ d4", "tg4 @ d4", "pp8+tg2 @ d4"]
    for test in values["tests"]:
        assert len(test["samples"]) == 2
        assert test["best"] == max(test["samples"]) >= test["mean"] > 0
