"""Measuring plans and outputs with the engine itself, on the bundled model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_architectures as toys
import toy_experts
from engine_helpers import TEXT
from moments_toy import HEAD, Toy, toy_moments

from surgeon.engine.errors import EngineError, EngineMissing
from surgeon.engine.protocol import Engine, Message
from surgeon.errors import Cancelled, DiskFull, SurgeonError
from surgeon.gguf.identity import model_identity
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.evaluation import Evaluation, Subject, TextJob, Wanted
from surgeon.measure.probing import Prober
from surgeon.measure.progress import Standing
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.trials.journal import Journal
from surgeon.trials.records import recipe_text
from surgeon.write.operation import WriteOptions, write

KLD = Wanted(divergence=True, text=TEXT, n_ctx=64, n_chunks=2)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def subject(model: Path, imatrix: Path, plan: Plan) -> Subject:
    opened, weights = load_model(model), load_imatrix(imatrix)
    resolution = resolve(opened, plan, weights)
    return Subject("plan", model, opened.file.nbytes, recipe_text(plan, weights), resolution, weights)


def test_a_plan_is_written_measured_and_removed(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path
) -> None:
    wanted = replace(KLD, speed=False)
    plan = Plan("F16", pruned=frozenset({9}))
    evaluation = Evaluation(subject(demo_model, demo_imatrix, plan), wanted, Engine(), journal, tmp_path / "cache")
    standings = list(evaluation.steps())
    stages = list(dict.fromkeys(standing.stage for standing in standings))
    assert stages == ["the unchanged model", "writing the plan", "KL divergence"]
    assert all(0 <= standing.part <= 1 and standing.count == 3 for standing in standings)
    assert standings[-1].part == 1
    trial = evaluation.trial
    assert trial is not None
    assert 0.005 < (trial.figure("mean_kld") or 0) < 0.5
    assert trial.output == ""
    assert trial.recipe
    assert trial.size < trial.source_size
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["bases"]
    assert [found.label for found in journal.trials()] == [f"{demo_model.stem} (unchanged)", "plan"]

    # The same plan written: the same row, and the base is there already.
    out = tmp_path / "out.gguf"
    made = evaluation.subject
    assert made.resolution is not None
    list(write(made.resolution, made.imatrix, out, WriteOptions(), threading.Event()))
    again = Evaluation(replace(made, output=out), KLD, Engine(), journal, tmp_path / "cache")
    assert {standing.stage for standing in again.steps()} == {"KL divergence"}
    assert again.trial is not None
    assert again.trial.id == trial.id
    assert again.trial.output == str(out)
    assert again.trial.figure("mean_kld") == trial.figure("mean_kld")


def test_a_plan_of_types_is_measured_without_its_file_and_gives_the_same_figures(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path
) -> None:
    plan = Plan("Q4_K_S", types=(("blk.3.ffn_down.weight", "Q3_K"),))
    evaluation = Evaluation(subject(demo_model, demo_imatrix, plan), KLD, Engine(), journal, tmp_path / "cache")
    stages = dict.fromkeys(standing.stage for standing in evaluation.steps())
    assert list(stages) == ["the unchanged model", "KL divergence"]
    probed = evaluation.trial
    assert probed is not None
    assert probed.output == ""
    assert probed.size == evaluation.subject.resolution.total_bytes  # type: ignore[union-attr]

    out = tmp_path / "out.gguf"
    made = evaluation.subject
    assert made.resolution is not None
    list(write(made.resolution, made.imatrix, out, WriteOptions(), threading.Event()))
    again = Evaluation(replace(made, output=out), KLD, Engine(), journal, tmp_path / "cache")
    assert {standing.stage for standing in again.steps()} == {"KL divergence"}
    assert again.trial is not None
    assert again.trial.id == probed.id
    assert again.trial.measured == probed.measured
    assert again.trial.output == str(out)


@pytest.mark.parametrize("head", ["Q5_1", "Q4_0"])
def test_tied_embeddings_are_measured_without_a_file_where_that_gives_the_same_figures(
    head: str, demo_model: Path, journal: Journal, tmp_path: Path
) -> None:
    """Many processors multiply Q4_0 packed, and its file's rows are looked up unpacked; no processor packs Q5_1."""
    model = toy_experts.write_reading(toys.gemma("gemma3", 6), tmp_path / "tied.gguf", demo_model, tied=True)
    opened = load_model(model)
    plan = Plan(types=(("blk.2.ffn_down.weight", "Q4_0"), ("token_embd.weight", head)))
    made = Subject("plan", model, opened.file.nbytes, recipe_text(plan, None), resolve(opened, plan, None))
    evaluation = Evaluation(made, KLD, Engine(threads=1), journal, tmp_path / "cache")
    stages = list(dict.fromkeys(standing.stage for standing in evaluation.steps()))
    assert stages[:2] == ["the unchanged model", "KL divergence"]
    if head == "Q5_1":
        assert stages == stages[:2]
    found = evaluation.trial
    assert found is not None
    out = tmp_path / "out.gguf"
    assert made.resolution is not None
    list(write(made.resolution, None, out, WriteOptions(), threading.Event()))
    again = Evaluation(replace(made, output=out), KLD, Engine(threads=1), journal, tmp_path / "cache")
    list(again.steps())
    assert again.trial is not None
    assert again.trial.measured == found.measured
    assert not list((tmp_path / "cache").glob("*/plan.gguf"))


def test_the_unchanged_model_is_measured_itself(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path
) -> None:
    evaluation = Evaluation(subject(demo_model, demo_imatrix, Plan()), KLD, Engine(), journal, tmp_path)
    stages = {standing.stage for standing in evaluation.steps()}
    assert stages == {"the unchanged model"}
    assert evaluation.trial is not None
    assert evaluation.trial.figure("ppl") is not None
    assert evaluation.trial.figure("mean_kld") is None


def test_tasks_and_perplexity_go_into_one_row(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path
) -> None:
    tasks = tmp_path / "endings.txt"
    tasks.write_text("Sea: The keeper lit the\n0\nlamp\nof of\nthe the\nand and\n")
    wanted = Wanted(perplexity=True, text=TEXT, n_ctx=64, n_chunks=2, tasks=(tasks,))
    made = replace(subject(demo_model, demo_imatrix, Plan()), label="model")
    evaluation = Evaluation(made, wanted, Engine(), journal, tmp_path)
    list(evaluation.steps())
    (trial,) = journal.trials()
    assert trial.figure("ppl") is not None
    assert set(trial.measured.tasks) == {"hellaswag"}
    assert trial.measured.conditions["text"] == TEXT.name


@pytest.mark.parametrize("stage", ["the unchanged model", "writing the plan", "KL divergence"])
def test_stopping_anywhere_leaves_nothing_half(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path, stage: str
) -> None:
    plan = Plan("F16", pruned=frozenset({9}))
    evaluation = Evaluation(subject(demo_model, demo_imatrix, plan), KLD, Engine(), journal, tmp_path / "cache")

    def run() -> None:
        for standing in evaluation.steps():
            if standing.stage == stage:
                evaluation.cancelled.set()

    with pytest.raises(Cancelled):
        run()
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.suffix for path in left] == ([] if stage == "the unchanged model" else [".kld"])
    run_in_hand = evaluation.run
    assert run_in_hand is not None
    assert run_in_hand.process is None or run_in_hand.process.poll() is not None


def test_without_the_engine_nothing_is_written(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.engine.libraries._package_folder", lambda package: None)
    evaluation = Evaluation(subject(demo_model, demo_imatrix, Plan("F16")), KLD, Engine(), journal, tmp_path / "cache")
    with pytest.raises(EngineMissing, match=r"gguf-surgeon\[engine\]"):
        list(evaluation.steps())
    assert not (tmp_path / "cache").exists()


def test_a_short_text_is_told_before_the_plan_is_written(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A lamp.\n")
    wanted = replace(KLD, text=short)
    made = subject(demo_model, demo_imatrix, Plan("F16", pruned=frozenset({9})))
    evaluation = Evaluation(made, wanted, Engine(), journal, tmp_path / "cache")
    stages: set[str] = set()
    with pytest.raises(EngineError, match="take a longer text"):
        stages.update(standing.stage for standing in evaluation.steps())
    assert "writing the plan" not in stages
    assert journal.trials() == []
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_model_that_does_not_load_is_one_line(journal: Journal, demo_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_model.read_bytes()[: 1 << 20])
    made = Subject("broken", demo_model, demo_model.stat().st_size, output=broken)
    evaluation = Evaluation(made, replace(KLD, divergence=False, perplexity=True), Engine(), journal, tmp_path)
    with pytest.raises(SurgeonError, match=r"broken\.gguf") as raised:
        list(evaluation.steps())
    assert "\n" not in str(raised.value)
    assert journal.trials() == []


def test_a_full_disk_is_told_with_the_way_out(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskFull("plan.gguf: cannot be written: No space left on device: 9 bytes needed")

    monkeypatch.setattr("surgeon.measure.evaluation.write", full)
    evaluation = Evaluation(
        subject(demo_model, demo_imatrix, Plan("F16", pruned=frozenset({9}))),
        KLD,
        Engine(),
        journal,
        tmp_path / "cache",
    )
    with pytest.raises(SurgeonError, match=r"cache: No space left.*SURGEON_CACHE_DIR"):
        list(evaluation.steps())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["bases"]


def test_neither_file_nor_plan(journal: Journal, demo_model: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(Subject("lost", demo_model, 1), KLD, Engine(), journal, tmp_path)
    with pytest.raises(SurgeonError, match="lost: neither a file nor a plan"):
        list(evaluation.steps())


def test_standings_tell_the_time_left() -> None:
    from surgeon.engine.protocol import Started, Step, Within
    from surgeon.measure.progress import followed

    messages = [Started(100, 4, 64), Step(1, 4, {"ppl": 3.0}), Within(1.5, 4), Step(4, 4)]
    items = list(followed(messages, "stage", "chunks", 1, 2))
    standings = [item for item in items if isinstance(item, Standing)]
    assert [standing.note for standing in standings] == [
        "loading the model", "0 of 4 chunks", "1 of 4 chunks", "1 of 4 chunks", "4 of 4 chunks",
    ]  # fmt: skip
    assert [standing.part for standing in standings] == [0, 0, 0.25, 0.375, 1]
    assert standings[2].figures == standings[3].figures == {"ppl": 3.0}
    assert standings[2].seconds_left is not None
    assert standings[4].seconds_left == 0
    assert [standing.of_all for standing in standings] == [0.5, 0.5, 0.625, 0.6875, 1]


class AskedError(Exception):
    """The prober was handed over."""


class Workers:
    """Takes no job but the probes, and keeps what it would probe with."""

    given: Prober

    def takes(self, job: TextJob, cache: Path) -> bool:
        return False

    def messages(self, job: TextJob) -> Iterator[Message]:
        raise AssertionError

    def prober(self, prober: Prober) -> Prober:
        self.given = prober
        raise AskedError


def test_workers_measure_a_plan_with_its_encoder(
    demo_model: Path, demo_imatrix: Path, journal: Journal, tmp_path: Path
) -> None:
    """A worker resolves the plan anew, from what the prober names."""
    rows = np.random.default_rng(0).standard_normal((5000, 256)).astype(np.float32)
    toy_moments(
        tmp_path / "m.gguf", Toy({"blk.0.attn_q.weight": rows}), replace(HEAD, model=model_identity(demo_model))
    )
    model, weights, moments = load_model(demo_model), load_imatrix(demo_imatrix), load_moments(tmp_path / "m.gguf")
    plan = Plan("Q4_0", moments_file=str(tmp_path / "m.gguf"), shrink=0.5)
    resolution = resolve(model, plan, weights, moments)
    assert resolution.with_feedback
    made = Subject("plan", demo_model, 0, recipe_text(plan, weights, moments), resolution, weights)
    evaluation = Evaluation(made, KLD, Engine(), journal, tmp_path / "cache")
    evaluation.elsewhere = workers = Workers()
    with pytest.raises(AskedError):
        list(evaluation.steps())
    there = workers.given
    assert resolve(model, plan, there.importances, there.moments).with_feedback == resolution.with_feedback
    assert there.shrink == 0.5
