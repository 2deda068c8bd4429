"""The journal of trials: nothing is lost over restarts and crashes, and the tables say what was measured."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from surgeon.errors import SurgeonError
from surgeon.trial_tables import compare, front, markdown, sorted_by, unlike_conditions
from surgeon.trials import Journal, Measured, Speed, Trial, measured, model_identity, new_trial, state_folder


def kld(value: float, ppl: float = 9.0) -> Measured:
    figures = {
        "ppl": ppl, "ppl_error": 0.5, "correlation": 0.99, "mean_kld": value, "mean_kld_error": 0.001,
        "rms_delta_p": 0.0625, "rms_delta_p_error": 0.001, "same_top": 0.9,
    }  # fmt: skip
    return Measured(figures, {"text": "a.txt", "n_ctx": 512})


def trial(label: str, size: int, value: float | None = None) -> Trial:
    return new_trial(label, size, 1000, measured=kld(value) if value is not None else Measured())


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "deep" / "journal.jsonl")


def test_trials_survive_a_restart(journal: Journal) -> None:
    assert journal.trials() == []
    first = journal.add(new_trial("Q4_K_M", 500, 1000, bpw=4.9, recipe='file_type = "Q4_K_M"\n', measured=kld(0.01)))
    second = journal.add(trial("Q8_0", 800))
    journal.add_measured(second.id, Measured(tasks={"hellaswag": (70.0, 0.0)}))
    journal.add_measured(second.id, Measured(speed={"pp512": Speed(100.0, 2.0, 103.0)}))
    journal.mark_best(second.id)
    again = Journal(journal.path).trials()
    assert again[0] == first
    assert again[0].recipe == 'file_type = "Q4_K_M"\n'
    assert again[1].best
    assert again[1].figure("hellaswag") == 70.0
    assert again[1].figure("pp512") == 100.0
    assert (again[0].figure("mean_kld"), again[1].figure("mean_kld")) == (0.01, None)


def test_only_one_is_the_best(journal: Journal) -> None:
    first, second = journal.add(trial("a", 1)), journal.add(trial("b", 2))
    journal.mark_best(first.id)
    journal.mark_best(second.id)
    assert [item.label for item in journal.trials() if item.best] == ["b"]
    with pytest.raises(SurgeonError, match="has no trial 42"):
        journal.mark_best("42")


def test_forgotten_trials_stay_away(journal: Journal) -> None:
    first, second = journal.add(trial("a", 1)), journal.add(trial("b", 2))
    journal.forget(first.id)
    assert [item.id for item in journal.trials()] == [second.id]


def test_a_line_cut_off_by_a_crash_costs_only_itself(journal: Journal) -> None:
    first = journal.add(trial("a", 1))
    journal.add(trial("b", 2))
    whole = journal.path.read_bytes()
    for cut in range(len(whole) // 2 + 10, len(whole) - 2):
        journal.path.write_bytes(whole[:cut])
        third = journal.add(trial("c", 3))
        assert [item.id for item in journal.trials()] == [first.id, third.id]


def _add_many(path: Path, label: str) -> None:
    for number in range(50):
        Journal(path).add(trial(f"{label}{number}", number))


def test_two_writers_at_once(journal: Journal) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(journal.path, label)) for label in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(item.label for item in journal.trials()) == sorted(f"{a}{n}" for a in "ab" for n in range(50))


def test_one_output_is_one_trial(journal: Journal, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"x" * 100)
    first = journal.record(output, "Q4", kld(0.1), source_size=400)
    second = journal.record(output, "another name", Measured(tasks={"arc": (50.0, 1.0)}))
    assert (second.id, second.label, second.size, second.source_size) == (first.id, "Q4", 100, 400)
    assert (second.figure("mean_kld"), second.figure("arc")) == (0.1, 50.0)
    output.write_bytes(b"y" * 100)
    assert journal.record(output, "Q5", kld(0.05)).id != first.id


def test_a_model_is_known_by_its_content(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"1" * 3_000_000)
    b.write_bytes(b"1" * 3_000_000)
    c.write_bytes(b"1" * 2_999_999 + b"2")
    assert model_identity(a) == model_identity(b) != model_identity(c)
    assert Journal.of_model(a, tmp_path).path == Journal.of_model(b, tmp_path).path
    with pytest.raises(SurgeonError, match="cannot be read"):
        model_identity(tmp_path / "none")


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeonError, match="the journal cannot be written"):
        Journal(tmp_path / "file" / "journal.jsonl").add(trial("a", 1))


def test_without_a_home_the_journal_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    folder = state_folder()
    assert folder.is_dir()
    assert os.access(folder, os.W_OK)


def test_measurements_of_every_kind() -> None:
    values = {"ppl": 9.0, "mean_kld": 0.1, "n_ctx": 512, "engine": "x", "n_tokens": 3}
    found = measured(values, "/some/where/text.txt")
    assert found.figures == {"ppl": 9.0, "mean_kld": 0.1}
    assert found.conditions == {"n_ctx": 512, "engine": "x", "text": "text.txt"}
    assert measured({"task": "hellaswag", "score": 70.0}).tasks == {"hellaswag": (70.0, 0.0)}
    arc = {"task": "multiple-choice", "score": 40.0, "score_error": 2.0}
    assert measured(arc, "tasks/arc-easy.bin").tasks == {"arc-easy": (40.0, 2.0)}
    speed = measured({"tests": [{"test": "tg128", "mean": 9.0, "deviation": 1.0, "best": 10.0, "samples": []}]})
    assert speed.speed == {"tg128": Speed(9.0, 1.0, 10.0)}


def test_the_front_is_what_nothing_beats() -> None:
    trials = [trial("big", 900, 0.01), trial("worse", 900, 0.02), trial("small", 300, 0.5), trial("mid", 500, 0.1)]
    trials += [trial("beaten", 600, 0.3), trial("not measured", 100)]
    assert [item.label for item in front(trials)] == ["small", "mid", "big"]
    assert [item.label for item in sorted_by(trials, "mean_kld")][-1] == "not measured"
    assert [item.label for item in sorted_by(trials, "size", descending=True)][:2] == ["big", "worse"]


def test_two_trials_side_by_side() -> None:
    first, second = trial("a", 900, 0.25), trial("b", 500)
    rows = {row.name: row for row in compare(first, second)}
    assert (rows["size"].first, rows["size"].second, rows["size"].change) == (900, 500, -400)
    assert rows["mean_kld"].change is None
    other = new_trial("c", 1, 1, measured=Measured(conditions={"text": "b.txt", "n_ctx": 512}))
    assert unlike_conditions(first, other) == ["text: a.txt, b.txt"]
    assert unlike_conditions(first, second) == []


def test_markdown_tables() -> None:
    one = new_trial("Q4|K", 5_000_000_000, 10_000_000_000, bpw=4.875, best=True, measured=kld(0.0123456))
    tasks = {"arc": (66.9333, 1.719), "hellaswag": (74.67, 0.0)}
    two = new_trial(
        "F16", 10_000_000_000, 10_000_000_000, measured=Measured(tasks=tasks, speed={"pp512": Speed(9, 1, 10)})
    )
    lines = markdown([one, two]).splitlines()
    assert "| **Q4\\|K** | 10.00 | 5.00 | 50.0% | 4.88 |" in lines
    assert "| **Q4\\|K** | 9.000000 ±0.500000 | 99.00% | 0.012346 ±0.001000 | 6.250 ±0.100 | 90.000 |" in lines
    assert "| F16 | 66.9333 ±1.7190 | 74.67 | 70.80 |" in lines
    assert "| F16 | 9.31 GiB | pp512 | 9.00 ±1.00 | 10.00 |" in lines
    assert [line for line in lines if line.startswith("#")] == [
        "### Sizes (in GB)", "### Perplexity and KL divergence", "### Task scores", "### Tokens per second",
    ]  # fmt: skip
