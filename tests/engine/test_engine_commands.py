"""The commands as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import TEXT, Base, multiple_choice_file

from surgeon.commands import bench, imatrix, journal, perplexity, prune_scan, stats
from surgeon.commands.prune_scan import layer_sets
from surgeon.errors import SurgeonError, UsageError

WINDOWS = ["-f", str(TEXT), "-c", "64", "-t", "1"]


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output(capsys))
    return found


def test_perplexity(demo_model: Path, base: Base, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = tmp_path / "base.kld"
    arguments = ["-m", str(demo_model), *WINDOWS, "--chunks", "4", "--kl-divergence-base", str(saved)]
    assert perplexity.main([*arguments]) == 0
    assert output(capsys) == f"Final estimate: PPL = {base.values['ppl']:.4f} +/- {base.values['ppl_error']:.5f}\n"
    assert saved.read_bytes() == base.path.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["base.kld"]
    with pytest.raises(SurgeonError, match="already exists; choose another name or pass --overwrite"):
        perplexity.main(arguments)
    for source in (demo_model, TEXT):
        with pytest.raises(SurgeonError, match=r"is the input .* itself; the input is never changed"):
            perplexity.main([*arguments[:-1], str(source), "--overwrite"])
    assert perplexity.main([*arguments, "--json", "--overwrite"]) == 0
    assert as_json(capsys)["ppl"] == pytest.approx(base.values["ppl"])


def test_a_failed_run_leaves_the_old_base(demo_model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "base.kld"
    saved.write_bytes(b"_logits_, precious")
    text = tmp_path / "short.txt"
    text.write_text("short")
    with pytest.raises(SurgeonError, match="needs 1024"):
        perplexity.main(["-m", str(demo_model), "-f", str(text), "--kl-divergence-base", str(saved), "--overwrite"])
    assert saved.read_bytes() == b"_logits_, precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["base.kld", "short.txt"]


def test_kl_divergence(demo_model: Path, base: Base, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", str(demo_model), "-t", "1", "--kl-divergence", "--kl-divergence-base", str(base.path)]
    assert perplexity.main([*arguments, "--json"]) == 0
    values = as_json(capsys)
    wanted = {"ppl", "ppl_error", "mean_kld", "median_kld", "kld_99", "rms_delta_p", "same_top"}
    assert wanted <= set(values)
    assert perplexity.main([*arguments, "--show-log"]) == 0
    shown = capsys.readouterr()
    assert f"Mean PPL(Q)                   : {values['ppl']:10.6f}" in shown.out
    assert "Maximum KLD:" in shown.out
    assert "Same top p:" in shown.out
    assert "llama_model_loader" in shown.err


def test_tasks(demo_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "tasks.txt"
    file.write_text("The old man went down to the\n0\nharbour and looked at the sea.\nzz qq\nxx vv\nkk jj\n" * 2)
    arguments = ["-m", str(demo_model), "-t", "1", "--hellaswag", "-f", str(file)]
    assert perplexity.main([*arguments, "--hellaswag-tasks", "1"]) == 0
    assert output(capsys).startswith("1 tasks: acc_norm 100.00000000%  95% confidence interval [20.6549%, 100.0000%]")
    assert perplexity.main([*arguments, "--json"]) == 0
    values = as_json(capsys)
    assert (values["score"], values["n_tasks"]) == (100.0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-f TEXT is missing"),
        (["--hellaswag"], "needs its task file"),
        (["--hellaswag", "--winogrande"], "at a time"),
        (["--kl-divergence"], "needs --kl-divergence-base"),
    ],
)
def test_what_is_missing_is_said(demo_model: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        perplexity.main(["-m", str(demo_model), *arguments])


def test_imatrix(demo_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    arguments = ["-m", str(demo_model), *WINDOWS, "-o", str(out), "--chunks", "2", "--json"]
    assert imatrix.main(arguments) == 0
    told = capsys.readouterr()
    assert "surgeon: time unknown until the first chunk; 128 tokens; disk " in told.err
    values = json.loads(told.out)
    assert (values["entries"], values["chunks"], len(values["layers"])) == (84, 2, 12)
    assert values["ppl"] > 5
    with pytest.raises(SurgeonError, match="already exists"):
        imatrix.main(arguments)
    for source in (demo_model, TEXT):
        with pytest.raises(SurgeonError, match=r"is the input .* itself; the input is never changed"):
            imatrix.main([*arguments, "--overwrite", "-o", str(source)])
    assert imatrix.main(["--in-file", str(out), "-o", str(tmp_path / "i.dat")]) == 0
    assert imatrix.main(["--in-file", f"{out},{out}", "-o", str(tmp_path / "twice.gguf")]) == 0
    assert "84 entries, 4 chunks of 64 tokens" in output(capsys)
    assert stats.main([str(tmp_path / "twice.gguf"), "--layers"]) == 0
    shown = output(capsys).splitlines()
    assert any(line.split() == ["layer", "block", "influence", "LIM", "weights'", "ZD"] for line in shown)
    assert stats.main([str(out), "--json"]) == 0
    for read, shown_before in zip(as_json(capsys)["influence"], values["layers"], strict=True):
        assert read == pytest.approx(shown_before, rel=1e-5)
    with pytest.raises(UsageError, match="nothing to do"):
        imatrix.main(["-o", str(tmp_path / "none.gguf")])


def test_bench(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", str(demo_model), "-t", "1", "-p", "8", "-n", "2", "-pg", "4,2", "-r", "1"]
    assert bench.main([*arguments, "--json"]) == 0
    values = as_json(capsys)
    assert [test["test"] for test in values["tests"]] == ["pp8", "tg2", "pp4+tg2"]
    assert (values["threads"], values["n_params"]) == (1, 11_540_736)
    with pytest.raises(UsageError, match="nothing to measure"):
        bench.main(["-m", str(demo_model), "-p", "0", "-n", "0"])


def test_prune_scan_goes_on_where_it_was(
    demo_model: Path, demo_imatrix: Path, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    arguments = ["-m", str(demo_model), *WINDOWS, "--chunks", "2", "--imatrix", str(demo_imatrix), "--json"]
    assert prune_scan.main([*arguments, "--layers", "0,3"]) == 0
    shown = capsys.readouterr()
    first = json.loads(shown.out)
    assert "surgeon: time unknown until the first chunk; 384 tokens; disk " in shown.err
    states = list((home / "state" / "surgeon" / "prune-scan").glob("*.json"))
    assert len(states) == 1
    kept = json.loads(states[0].read_text())
    kept["damages"][0]["mean_kld"] = 42.0  # shows that it is not measured again
    states[0].write_text(json.dumps(kept))
    assert prune_scan.main([*arguments, "--layers", "0,3,11"]) == 0
    shown = capsys.readouterr()
    values = json.loads(shown.out)
    assert "256 tokens; disk " in shown.err, "the layer that is left and the whole model"
    assert [damage["layers"] for damage in values["damages"]] == [[0], [3], [11]]
    assert values["damages"][0]["mean_kld"] == 42.0
    assert values["damages"][1] == first["damages"][1]
    assert set(values["statistics"]) == {"Σ(Bias)", "ZD", "CosSim"}
    # 42 > layer 11 > layer 3, and Σ(Bias) of layer 11 > 0 > 3 in the bundled matrix.
    assert values["rank_correlation"]["Σ(Bias)"] == pytest.approx(0.5)
    assert prune_scan.main([*arguments, "--layers", "0", "--restart"]) == 0
    assert as_json(capsys)["damages"] == first["damages"][:1]


def test_a_damaged_state_file_is_named(demo_model: Path, home: Path) -> None:
    arguments = ["-m", str(demo_model), *WINDOWS, "--chunks", "2", "--layers", "3"]
    assert prune_scan.main(arguments) == 0
    (state,) = (home / "state" / "surgeon" / "prune-scan").glob("*.json")
    state.write_text("{")
    with pytest.raises(SurgeonError, match="not a state file of prune-scan"):
        prune_scan.main(arguments)


def test_layer_sets() -> None:
    assert layer_sets(None, 3, pairs=False) == [[0], [1], [2]]
    assert layer_sets(None, 3, pairs=True) == [[0], [1], [2], [0, 1], [1, 2]]
    assert layer_sets("1,3-4,2+0", 5, pairs=True) == [[1], [3], [4], [0, 2], [3, 4]]
    for wrong in ("x", "3-", "1,,2", "7", "-1"):
        with pytest.raises(UsageError, match="--layers"):
            layer_sets(wrong, 5, pairs=False)


@pytest.mark.parametrize(
    ("option", "wrong"), [("--journal", "absent.gguf"), ("--recipe", "absent.toml"), ("--recipe", "latin.toml")]
)
def test_a_wrong_name_for_the_journal_is_said_before_anything_is_measured(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, wrong: str
) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    arguments = ["-m", str(demo_model), "--journal", str(demo_model), option, str(tmp_path / wrong)]
    for command, more in ((perplexity, ["-f", str(demo_model)]), (bench, [])):
        with pytest.raises(SurgeonError, match=wrong):
            command.main([*arguments, *more])
    assert capsys.readouterr() == ("", ""), "no progress: nothing has begun"


def test_a_scan_reads_the_imatrix_that_it_compares_with_first(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("too short a text")
    arguments = ["-m", str(demo_model), "-f", str(tmp_path / "text.txt"), "--imatrix", str(tmp_path / "absent.gguf")]
    with pytest.raises(SurgeonError, match="absent"):
        prune_scan.main(arguments)


def test_figures_go_into_the_journal(
    demo_model: Path, base: Base, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('file_type = "F16"\n')
    common = ["-m", str(demo_model), "-t", "1", "--journal", str(demo_model), "--label", "the whole"]
    divergence = ["--kl-divergence", "--kl-divergence-base", str(base.path), "--recipe", str(recipe)]
    assert perplexity.main([*common, *divergence]) == 0
    assert bench.main([*common, "-p", "4", "-n", "0", "-r", "1"]) == 0
    tasks = multiple_choice_file(tmp_path / "arc.bin", [("The sea was", [" calm.", " xq zt"], 0)])
    assert perplexity.main([*common, "--multiple-choice", "-bf", str(tasks)]) == 0
    capsys.readouterr()
    assert journal.main([str(demo_model), "--json"]) == 0
    (trial,) = json.loads(output(capsys))
    assert trial["label"] == "the whole"
    assert list(trial["measured"]["tasks"]) == ["arc"], "named by its file"
    assert trial["size"] == trial["source_size"] == demo_model.stat().st_size
    assert trial["measured"]["conditions"]["n_chunks"] == 4
    assert set(trial["measured"]["speed"]) == {"pp4"}
    assert journal.main([str(demo_model), "--recipe", trial["id"]]) == 0
    assert output(capsys) == 'file_type = "F16"\n'
    assert journal.main([str(demo_model), "--best", trial["id"]]) == 0
    assert f"* {trial['id']}" in output(capsys)
    assert journal.main([str(demo_model), "--compare", trial["id"], trial["id"]]) == 0
    assert "mean_kld" in output(capsys)
    assert journal.main([str(demo_model), "--markdown"]) == 0
    assert "| **the whole** | 23.23 | 23.23 | 0.0% |" in output(capsys)
    with pytest.raises(SurgeonError, match="has no trial 42"):
        journal.main([str(demo_model), "--recipe", "42"])
