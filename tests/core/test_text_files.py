"""A text file of ours that others wrote into loses its bad line and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.errors import SurgeonError
from surgeon.plan.recipe import RecipeError, load_recipe
from surgeon.session.metrics import METRICS
from surgeon.toml_text import read_toml
from surgeon.trials.journal import Journal, Measured, new_trial
from surgeon.tui.config import load_config

BAD_LINES = [
    b"[" * 100_000,
    b'{"event": "trial", "id": ' + b"9" * 5000 + b"}",
    b'{"event": "trial", "id": ["x"]}',
    b'{"event": "trial", "id": "x"}',
    b'{"event": "trial", "id": "x", "when": 1, "label": 2, "size": "3", "source_size": null}',
    b'{"event": "measured", "id": "ID"}',
    b'{"event": "measured", "id": "ID", "measured": []}',
    b'{"event": "measured", "id": "ID", "measured": {"tasks": {"t": 5}}}',
    b'{"event": "measured", "id": "ID", "measured": {"figures": {"ppl": "low"}}}',
    b'{"event": "measured", "id": "ID", "measured": {"speed": {"pp": {}}}}',
    b'{"event": "best"}',
    b'{"event": 5, "id": "ID"}',
    b"null",
    b"\xff\xfe\0",
    b'{"event": "forgotten", "id": "ID"',
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_the_journal_loses_nothing_for_one_bad_line(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    first = journal.add(new_trial("first", 5, 9, measured=Measured({"ppl": 5.0})))
    with journal.path.open("ab") as file:
        file.write(b"\n" + line.replace(b"ID", first.id.encode()) + b"\n")
    second = journal.add(new_trial("second", 6, 9))
    journal.mark_best(second.id)
    assert journal.trials() == [first, type(second)(**{**vars(second), "best": True})]


def test_the_last_best_is_the_best_and_a_forgotten_one_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    trials = [journal.add(new_trial(str(n), n, 9)) for n in range(3)]
    for trial in trials:
        journal.mark_best(trial.id)
    assert [trial.best for trial in journal.trials()] == [False, False, True]
    journal.forget(trials[2].id)
    assert [trial.label for trial in journal.trials()] == ["0", "1"]
    with pytest.raises(SurgeonError, match="no trial"):
        journal.mark_best(trials[2].id)
    with pytest.raises(SurgeonError, match="no trial"):
        journal.mark_best('"')


def test_a_figure_that_is_none_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    journal.add(new_trial("x", 5, 9, measured=Measured({"ppl": float("nan"), "mean_kld": 0.5})))
    assert b"NaN" not in journal.path.read_bytes()
    assert journal.trials()[0].measured.figures == {"mean_kld": 0.5}


def test_the_config_keeps_what_is_good(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    lines = ["\ufefftheme = 'light'", "this is no TOML", "metric = []", "columns = [[]]", f"threads = {'9' * 5000}"]
    path.write_text("\n".join([*lines, f"metric = '{next(iter(METRICS))}'", "mouse = false", ""]))
    config = load_config(path)
    assert config.theme == "light"
    assert config.mouse is False
    assert config.problems
    assert all("\n" not in problem and len(problem) < 400 for problem in config.problems)


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, f"a = {'9' * 5000}", "a = [", "\0"])
def test_toml_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_toml(text)
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"{path}: not valid TOML: ")
    assert len(str(error.value)) < 700


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('\ufeffformat = 1\r\ntype = "Q4_K_M"\r\n')
    assert load_recipe(path).plan.file_type == "Q4_K_M"
    path.write_text("format = 1\nthreads = 1000000\n")
    with pytest.raises(RecipeError, match="threads = 1000000: at most 512"):
        load_recipe(path)
