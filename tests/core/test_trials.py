"""The journal, rows of what was written, the tables, the cache of bases, scratch folders: without the engine."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surgeon.errors import SurgeonError, UsageError
from surgeon.imatrix.files import load_imatrix
from surgeon.measure.base_cache import Base, estimated_bytes, trim
from surgeon.measure.evaluation import Wanted, task_kind
from surgeon.measure.scratch import scratch_folder, sweep
from surgeon.plan.plan import Healing, Plan, parse_rule, with_rule, with_types
from surgeon.plan.recipe import Recipe, read_recipe, to_toml
from surgeon.trials.journal import Journal, Measured, Speed, Trial, new_trial
from surgeon.trials.records import free_label, is_unchanged, recipe_text, recipe_words, record, written_output
from surgeon.trials.tables import compare, front, markdown, sorted_by, unlike_conditions


def measured(kld: float, text: str = "a.txt", **more: float) -> Measured:
    figures = {"ppl": 10 + kld, "ppl_error": 0.5, "mean_kld": kld, "mean_kld_error": kld / 10, "same_top": 0.9}
    return Measured(figures | {"rms_delta_p": 0.01, "correlation": 0.99} | more, {"text": text, "n_ctx": 64})


def trial(label: str, size: int, kld: float | None = None, **rest: object) -> Trial:
    return new_trial(label, size, 1000, measured=Measured() if kld is None else measured(kld), **rest)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.jsonl")


# --- the journal


def test_trials_survive_a_restart(journal: Journal) -> None:
    first = journal.add(trial("a", 10, 0.1, bpw=4.5, recipe="format = 1\n"))
    second = journal.add(trial("b", 20))
    speed = Measured(tasks={"hellaswag": (40.0, 1.5)}, speed={"tg128": Speed(12.5, 0.5, 13.0)})
    journal.add_measured(second.id, speed)
    journal.mark_best(first.id)
    journal.mark_best(second.id)
    again = Journal(journal.path).trials()
    assert [found.label for found in again] == ["a", "b"]
    assert [found.best for found in again] == [False, True]
    assert again[0].bpw == 4.5
    assert again[0].figure("mean_kld") == 0.1
    assert (again[1].figure("hellaswag"), again[1].figure("tg128"), again[1].figure("ppl")) == (40.0, 12.5, None)
    journal.forget(first.id)
    assert [found.id for found in Journal(journal.path).trials()] == [second.id]


def test_a_line_cut_off_costs_only_itself(journal: Journal) -> None:
    journal.add(trial("a", 10))
    with journal.path.open("ab") as file:
        file.write(b'{"event": "trial", "id": "half')
    journal.add(trial("b", 20))
    assert [found.label for found in journal.trials()] == ["a", "b"]


def test_unknown_trials_are_named(journal: Journal) -> None:
    with pytest.raises(SurgeonError, match="has no trial nobody"):
        journal.mark_best("nobody")
    with pytest.raises(SurgeonError, match="has no trial nobody"):
        journal.forget("nobody")


def test_figures_of_another_text_do_not_mix(journal: Journal) -> None:
    kept = journal.add(trial("a", 10, 0.1))
    journal.add_measured(kept.id, Measured({"ppl": 7.0}, {"text": "b.txt", "n_ctx": 64}))
    (found,) = journal.trials()
    assert found.measured.figures == {"ppl": 7.0}
    assert found.measured.conditions["text"] == "b.txt"
    journal.add_measured(kept.id, Measured({"mean_kld": 0.2}, {"text": "b.txt", "n_ctx": 64}))
    journal.add_measured(kept.id, Measured(tasks={"arc": (30.0, 1.0)}))
    (found,) = journal.trials()
    assert found.measured.figures == {"ppl": 7.0, "mean_kld": 0.2}
    assert found.measured.conditions["text"] == "b.txt"


def _add(path: Path, number: int) -> None:
    for index in range(20):
        Journal(path).add(new_trial(f"{number}-{index}", 1, 1))


def test_two_programs_at_once_lose_nothing(journal: Journal) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(journal.path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(journal.trials()) == 60
    assert all(json.loads(line) for line in journal.path.read_bytes().split(b"\n") if line)


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder is wanted")
    with pytest.raises(SurgeonError, match=r"the journal cannot be written") as raised:
        Journal(tmp_path / "state" / "j.jsonl").add(trial("a", 10))
    assert "\n" not in str(raised.value)


# --- rows of outputs


def test_one_row_for_each_output(journal: Journal, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"GGUF" + bytes(100))
    size = {"resolution": None, "source_size": 1000}
    first = journal.add(trial("out", 104, output_identity="other"))
    made = record(journal, _model_like(output), "out", measured=measured(0.1), kept=False, recipe="r", **size)
    assert made.label == "out (2)"
    assert made.output == ""
    again = record(journal, output, "out", measured=Measured(tasks={"arc": (30.0, 1.0)}), recipe="r", **size)
    assert again.id == made.id
    assert again.output == str(output)
    assert again.figure("mean_kld") == 0.1
    assert [found.id for found in journal.trials()] == [first.id, made.id]
    assert written_output(journal, "r") == output
    output.write_bytes(b"GGUF" + bytes(200))
    assert written_output(journal, "r") is None, "another file under the same name is not the output"


def _model_like(path: Path) -> Path:
    """The smallest GGUF there is, so that its size and bits per weight can be read."""
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    return path


def test_recipes_of_trials_are_read_from_anywhere(demo_imatrix: Path) -> None:
    imatrix = load_imatrix(demo_imatrix)
    plan = Plan("Q4_K_M", (parse_rule("attn_v=q6_k"),), pruned=frozenset({3}), imatrix_file="calibration.gguf")
    recipe = read_recipe(recipe_text(plan, imatrix), Path("/"))
    assert recipe.plan == plan
    assert recipe.imatrix == str(demo_imatrix)
    assert recipe_text(recipe.plan, imatrix) == recipe_text(plan, imatrix)
    assert read_recipe(recipe_text(plan, None), Path("/")).imatrix is None


def test_what_changes_nothing() -> None:
    assert is_unchanged(Plan(imatrix_file="a.gguf"))
    assert not is_unchanged(Plan(pruned=frozenset({1})))
    assert not is_unchanged(Plan("F16"))


def test_free_labels() -> None:
    taken = [trial("a", 1), trial("a (2)", 1)]
    assert [free_label(label, taken) for label in ("a", "b")] == ["a (3)", "b"]


# --- side by side


def test_the_front_is_what_nothing_beats() -> None:
    trials = [trial("a", 10, 0.5), trial("b", 20, 0.6), trial("c", 30, 0.1), trial("d", 5), trial("e", 10, 0.4)]
    assert [found.label for found in front(trials)] == ["e", "c"]
    assert [found.label for found in sorted_by(trials, "mean_kld")] == ["c", "e", "a", "b", "d"]


def test_comparison_and_unlike_conditions() -> None:
    first, second = trial("a", 10, 0.5), new_trial("b", 30, 1000, measured=measured(0.1, "b.txt"))
    rows = {row.name: row.change for row in compare(first, second)}
    assert rows["size"] == 20
    assert rows["mean_kld"] == pytest.approx(-0.4)
    assert unlike_conditions(first, second) == ["text: a.txt, b.txt"]


def test_tables_of_a_model_card() -> None:
    speed = Measured(tasks={"arc": (30.0, 1.5), "hellaswag": (40.0, 0.0)}, speed={"pp512": Speed(500.0, 3.0, 505.0)})
    best = trial("model|Q4", 250_000_000, 0.25, best=True)
    tables = markdown([new_trial("F16", 10**9, 10**9), best, new_trial("Q8", 5 * 10**8, 10**9, measured=speed)])
    assert "| Model | Source | Size | Shrinkage | BPW |\n|---|---:|---:|---:|---:|\n" in tables
    assert "| Q8 | 1.00 | 0.50 | 50.0% |  |" in tables
    assert r"| **model\|Q4** | 10.250000 ±0.500000 | 99.00% | 0.250000 ±0.025000 | 1.000% | 90.00% |" in tables
    assert "| Q8 | 30.0000 ±1.5000 | 40.00 | 35.00 |" in tables
    assert "| Model | arc | HellaSwag | Avg Score |" in tables
    assert "| Q8 | 500 MB | pp512 | 500.00 ±3.00 | 505.00 |" in tables


def test_a_card_calls_tasks_as_their_authors_do_where_that_tells_them_apart() -> None:
    def header(*names: str) -> str:
        scores = Measured(tasks=dict.fromkeys(names, (30.0, 1.5)))
        tables = markdown([new_trial("a", 10, 20, measured=scores)])
        return next(line for line in tables.splitlines() if "Avg Score" in line)

    assert header("MMLU-test_400", "truthfulqa_mc", "mine") == "| Model | MMLU | mine | Truthful QA | Avg Score |"
    assert header("mmlu-test", "mmlu-val") == "| Model | mmlu-test | mmlu-val | Avg Score |"


def test_a_card_says_what_was_measured_on_what() -> None:
    alike, other = [trial("a", 10, 0.5), trial("b", 20, 0.1)], new_trial("c", 30, 40, measured=measured(0.1, "b.txt"))
    assert markdown(alike).endswith("Measured on a.txt.\n")
    assert "Measured on |" not in markdown(alike)
    mixed = markdown([*alike, other])
    assert "| Same top p | Measured on |" in mixed
    assert "| 90.00% | b.txt |" in mixed
    assert "Sizes (in kB)" in mixed


# --- what is measured


def test_task_files_are_told_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "tasks"
    file.write_bytes((2).to_bytes(4, "little") + bytes(8))
    assert task_kind(file) == "multiple-choice"
    file.write_text('0,"She, as ever, gave the _ away.",card,gift,1\r\n')
    assert task_kind(file) == "winogrande"
    file.write_text("Cooking: she stirs, then\n2\na\nb\nc\nd\n")
    assert task_kind(file) == "hellaswag"
    with pytest.raises(SurgeonError, match="cannot be read"):
        task_kind(tmp_path / "none")


def test_what_is_wanted_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        Wanted().check()
    with pytest.raises(UsageError, match="need a text"):
        Wanted(divergence=True).check()
    with pytest.raises(SurgeonError, match="no such file"):
        Wanted(speed=True, tasks=(tmp_path / "none",)).check()
    Wanted(speed=True).check()


# --- the cache


def test_a_base_belongs_to_model_text_and_windows(demo_model: Path, demo_imatrix: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one")
    base = Base(demo_model, text, 64, 2, "engine 1", tmp_path)
    paths = {base.path, Base(demo_model, text, 64, 3, "engine 1", tmp_path).path}
    paths |= {Base(demo_model, text, 64, 2, "engine 2", tmp_path).path}
    paths |= {Base(demo_imatrix, text, 64, 2, "engine 1", tmp_path).path}
    text.write_text("two")
    paths |= {base.path}
    assert len(paths) == 5
    copy = tmp_path / "b.txt"
    copy.write_text("two")
    assert Base(demo_model, copy, 64, 2, "engine 1", tmp_path).path == base.path


def test_the_oldest_bases_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "bases"
    folder.mkdir()
    for age, name in enumerate(("new", "middle", "old")):
        (folder / f"{name}.kld").write_bytes(bytes(100))
        os.utime(folder / f"{name}.kld", (1000 - age, 1000 - age))
    assert [path.stem for path in trim(tmp_path, 250)] == ["old"]
    assert [path.stem for path in trim(tmp_path, 10)] == ["middle"], "the newest stays whatever its size"
    assert trim(tmp_path, 10) == []


def test_the_size_of_a_base_is_known_before(tmp_path: Path) -> None:
    import numpy as np

    from surgeon.engine.child.evaluation.base_file import BaseWriter
    from surgeon.engine.child.evaluation.windows import Rows

    with BaseWriter(str(tmp_path / "base.kld"), np.zeros((1, 8), np.int32), 5) as writer:
        writer.add(Rows(0, 4, np.zeros((3, 5), np.float32), np.zeros(3, np.int32), True))
        writer.finish()
    header = 8 + 12 + 4 * 8
    assert (tmp_path / "base.kld").stat().st_size == header + estimated_bytes(5, 8, 1)


# --- temporary folders


def test_a_scratch_folder_goes_with_its_run(tmp_path: Path) -> None:
    def run() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "plan.gguf").write_bytes(bytes(10))
            assert sweep(tmp_path) == [], "a folder in use is left alone"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom surgeon.measure.scratch import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'plan.gguf').write_bytes(bytes(10)); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert sweep(tmp_path) == []
        process.kill()
        process.wait()
    (left,) = tmp_path.iterdir()
    assert sweep(tmp_path) == [left]
    assert not left.exists()


def test_a_folder_about_to_be_locked_is_not_swept(tmp_path: Path) -> None:
    young = tmp_path / "trial-young"
    young.mkdir()
    assert sweep(tmp_path) == []
    os.utime(young, (time.time() - 3600, time.time() - 3600))
    assert sweep(tmp_path) == [young]


def test_no_place_for_a_scratch_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeonError, match="no temporary folder can be made"), scratch_folder(tmp_path / "file" / "x"):
        pass


def test_a_recipe_for_people_names_files_and_no_checksums() -> None:
    plan = Plan("Q4_K_M", pruned=frozenset({3, 9}), healing=Healing("/a/heal.gguf", "ab" * 32))
    plan = with_rule(with_types(plan, ["output.weight"], "Q8_0"), parse_rule("attn_v=q6_k"))
    text = to_toml(Recipe(plan, imatrix="/a/im.gguf", imatrix_sha256="cd" * 32), Path("/nowhere"))
    assert recipe_words(text) == [
        'type = "Q4_K_M"', '"attn_v=q6_k"', "prune = [3, 9]", 'imatrix "/a/im.gguf"', 'heal "/a/heal.gguf"',
        "[types]", '"output.weight" = "q8_0"',
    ]  # fmt: skip
