"""The commands that look at files: stats, show, verify, demo, cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, llama_kv, llama_tensors, toy_llama

import surgeon_kernels
from surgeon import cli
from surgeon.commands import demo, verify
from surgeon.commands import open as open_command
from surgeon.commands.stats import spans
from surgeon.errors import SurgeonError, UsageError
from surgeon.model import verification

GOLDEN = Path(__file__).parent.parent / "golden" / "statistics"


def output(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert cli.run([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def surgeon(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "surgeon", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


# ------------------------------------------------------------------------ stats


def test_stats_prints_llama_imatrix_rows(golden_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("deepseek2.imatrix.gguf", "moe8.imatrix.dat"):
        expected = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        text = output(capsys, "stats", golden_models / name) + output(capsys, "stats", golden_models / name, "--layers")
        found = text.replace("Σ(Bias)", "Σ(Act²)").splitlines()
        assert [line for line in expected if "\t" in line] == [line for line in found if "\t" in line]


def test_stats_json_has_the_golden_keys(golden_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "stats", golden_models / "qwen3moe.imatrix.gguf", "--json"))
    expected = json.loads((GOLDEN / "qwen3moe.imatrix.gguf.json").read_text(encoding="utf-8"))
    assert found["layers"] == expected["layers"]
    assert [list(row) for row in found["tensors"]] == [list(row) for row in expected["tensors"]]
    assert ["blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight"] in found["shared_inputs"]


def test_stats_names_what_shares_its_input(demo_imatrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "stats", demo_imatrix)
    assert "  attn_k = attn_q = attn_v (layers 0-11)\n  ffn_gate = ffn_up (layers 0-11)\n" in text
    assert "Ignore CosSim 0.0000" in text


def test_stats_help_says_what_newer_llama_cpp_calls_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["stats", "--help"])
    assert caught.value.code == 0
    assert "Σ(Act²)" in capsys.readouterr().out


def test_spans_of_layers() -> None:
    assert [spans(numbers) for numbers in ([], [3], [0, 1, 2], [5, 1, 2, 9])] == ["", "3", "0-2", "1-2, 5, 9"]


# ------------------------------------------------------------------------- show


def test_show_without_a_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "show", toy_llama(tmp_path / "a.gguf")).splitlines()
    assert lines[0].startswith("toy · llama · 2 layers · 1.21 million parameters · 2.43 MB · 16.0")
    assert [line.split() for line in lines if "blk.1" in line] == [["blk.1", "16.01", "bpw", "1.18", "MB"]]
    assert lines.count("  ffn_down     512×256          F16          262 kB") == 2
    assert "CosSim" not in lines[2]


def test_show_marks_what_a_matrix_does_not_cover(golden_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(
        capsys, "show", golden_models / "dense.gguf", "--imatrix", golden_models / "dense-partial.imatrix.gguf"
    )
    lines = text.splitlines()
    assert lines[1] == "imatrix dense-partial.imatrix.gguf · 63 chunks · 82/84 tensors covered"
    missing = [line.split()[0] for line in lines if line.endswith("no imatrix")]
    assert missing == ["attn_v", "ffn_gate"]
    (row,) = [line for line in lines[:14] if line.split()[:1] == ["attn_q"]]
    assert row.split() == ["attn_q", "256×256", "F16", "131", "kB", "597.69", "3.8977", "=", "attn_k,", "attn_v"]


def test_show_blank_cossim_is_not_zero(
    demo_model: Path, demo_imatrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(capsys, "show", demo_model, "--imatrix", demo_imatrix)
    layer_rows = [line.split() for line in text.splitlines() if line.startswith("blk.")]
    assert len(layer_rows) == 12
    assert len(layer_rows[0]) == len(layer_rows[1]) - 1
    assert "0.0000" not in text


def test_show_json(demo_model: Path, demo_imatrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "show", demo_model, "--imatrix", demo_imatrix, "--json"))
    assert (found["architecture"], found["parameters"], found["bytes"]) == ("llama", 11_540_736, 23_094_272)
    rows = {row["name"]: row for row in found["tensors"]}
    assert len(rows) == 111
    assert rows["blk.0.attn_q.weight"]["cossim"] is None
    assert rows["blk.1.attn_q.weight"]["cossim"] == pytest.approx(0.7011, abs=1e-4)
    assert rows["blk.1.attn_q.weight"]["same_input"] == ["blk.1.attn_k.weight", "blk.1.attn_v.weight"]
    assert rows["blk.1.attn_norm.weight"] == {
        "name": "blk.1.attn_norm.weight",
        "layer": 1,
        "ne": [256],
        "type": "F32",
        "bytes": 1024,
        "imatrix": False,
        "sum": None,
        "entropy": None,
        "cossim": None,
        "same_input": [],
    }
    assert [row["cossim"] is None for row in found["layers"]] == [True] + [False] * 11
    assert (found["imatrix"]["chunk_count"], found["imatrix"]["missing"]) == (60, [])
    plain = json.loads(output(capsys, "show", demo_model, "--json"))
    assert "imatrix" not in plain
    assert plain["layers"][0] == {"layer": 0, "bytes": 1_574_912, "parameters": 786_944}


def test_show_tells_entries_that_do_not_fit(golden_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, imatrix = golden_models / "shard-00002-of-00003.gguf", golden_models / "bad-size.imatrix.gguf"
    text = output(capsys, "show", model, "--imatrix", imatrix)
    assert text.endswith("imatrix entry blk.1.attn_q.weight has 128 values, the tensor needs 256\n")


# ----------------------------------------------------------------------- verify


def test_verify_finds_nothing_in_good_files(golden_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("small.gguf", "zoo.gguf", "align64.gguf", "shard-00003-of-00003.gguf", "tied-bf16.gguf"):
        assert output(capsys, "verify", golden_models / name).endswith("\nok\n")
    assert output(capsys, "verify", golden_models / "dense.imatrix.gguf").endswith("168 tensors, 111 kB\nok\n")


@pytest.mark.parametrize(("name", "type_"), [("bad-nan", "F32"), ("bad-inf", "F16")])
def test_verify_names_every_tensor_that_is_not_finite(
    name: str, type_: str, golden_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(output(capsys, "verify", golden_models / f"{name}.gguf", "--json", code=1))
    assert not found["ok"]
    texts = [problem["text"] for problem in found["problems"]]
    assert len(texts) == 9
    assert f"blk.0.ffn_down.weight ({type_}) has a value that is NaN or infinite in row 12" in texts


def test_verify_checks_the_scales_of_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = np.zeros((5, 2, 34), np.uint8)
    blocks[3, 1, :2] = np.array([np.inf], np.float16).view(np.uint8)
    kv = {"general.architecture": "mamba"}  # whose keys nobody compares
    path = build_gguf(tmp_path / "a.gguf", kv, {"t.weight": ("Q8_0", (64, 5), blocks.tobytes())})
    text = output(capsys, "verify", path, code=1)
    assert "error: t.weight (Q8_0) has a scale that is NaN or infinite in row 3\n" in text


def test_verify_finds_the_row_whatever_the_slab(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((7, 100), np.float32)
    values[5, 99] = np.nan
    path = build_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, {"t.weight": values})
    for slab in (64, 400, 1000, 1 << 20):
        monkeypatch.setattr(verification, "SLAB_BYTES", slab)
        assert "infinite in row 5\n" in output(capsys, "verify", path, code=1)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kv: dict, tensors: dict) -> str:
    return output(capsys, "verify", build_gguf(tmp_path / "a.gguf", kv, tensors), code=1)


def test_verify_tells_what_llama_cpp_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = llama_tensors(2)
    assert "block_count is 3, but layer 2 has no" in refused(tmp_path, capsys, llama_kv(3), tensors)
    assert "block_count is 1, but there are tensors of layer 1" in refused(tmp_path, capsys, llama_kv(1), tensors)
    lists = llama_kv(2) | {"llama.attention.head_count_kv": [2, 2, 2]}
    assert "llama.attention.head_count_kv has 3 entries for 2 layers" in refused(tmp_path, capsys, lists, tensors)
    assert "general.architecture is missing" in refused(tmp_path, capsys, {}, tensors)


def test_verify_tells_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build_gguf(tmp_path / "a.gguf", {"general.architecture": "x"}, {"t": np.zeros(32, np.float32)}, alignment=4)
    raw = path.read_bytes()
    path.write_bytes(raw.ljust(512, b"\0"))  # laid out without padding, read with 32
    assert output(capsys, "verify", path) == f"{path}: GGUF v3, 1 tensor, 512 B\nok\n"
    two = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}
    path = build_gguf(tmp_path / "b.gguf", {"general.architecture": "x"}, two, alignment=4)
    path.write_bytes(path.read_bytes().ljust(512, b"\0"))
    assert "llama.cpp loads only files without gaps" in output(capsys, "verify", path, code=1)


def test_verify_refuses_unknown_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build_gguf(tmp_path / "a.gguf", {"general.architecture": "x"}, {"strange": np.zeros(32, np.float32)})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"strange") + 7 + 12] = 97
    path.write_bytes(raw)
    text = output(capsys, "verify", path, code=1)
    assert "error: 1 tensor is of an unknown type, first strange (type 97: llama.cpp does not know it" in text


def test_verify_compares_with_a_matrix(golden_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = golden_models / "dense.gguf"
    partial = output(capsys, "verify", dense, "--imatrix", golden_models / "dense-partial.imatrix.gguf")
    assert "warning: dense-partial.imatrix.gguf: 2 tensors have no entry, first blk.3.attn_v.weight\nok\n" in partial
    shard = golden_models / "shard-00001-of-00003.gguf"
    bad = output(capsys, "verify", shard, "--imatrix", golden_models / "bad-size.imatrix.gguf", code=1)
    assert "error: bad-size.imatrix.gguf: blk.1.attn_q.weight has 128 values, the tensor needs 256" in bad
    other = output(capsys, "verify", shard, "--imatrix", golden_models / "dense.imatrix.gguf", code=1)
    assert "note: dense.imatrix.gguf: 63 entries are for no tensor" in other


def test_verify_shows_progress_on_a_terminal_only(
    golden_models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.run(["verify", str(golden_models / "small.gguf")])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    steps = iter([verification.Checked("blk.0.x", 25, 100)])
    assert list(verify.with_progress(steps)) == []
    shown = capsys.readouterr().err
    assert " 25.0 %  blk.0.x" in shown
    assert shown.endswith("\r\x1b[K")


# ------------------------------------------------------------------ cache, demo


def test_cache_tells_and_clears(tmp_path: Path) -> None:
    def cache(*arguments: str) -> str:
        done = surgeon("cache", *arguments, SURGEON_CACHE_DIR=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    root = tmp_path / "kernels"
    first = cache()
    assert first.startswith(f"{root}: 0 files, 0 B; this version's are in ")
    for version in (root / first.split()[-1], root / "older"):
        version.mkdir(parents=True, exist_ok=True)
        (version / "a.nbi").write_bytes(bytes(2000))
    assert cache().startswith(f"{root}: 2 files, 4.00 kB;")
    assert cache("--clear") == f"{root}: removed 4.00 kB\n"
    assert not list(root.rglob("*.nbi"))
    assert cache().startswith(f"{root}: 0 files")


def test_cache_without_any_folder_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgeon_kernels, "cache_directory", lambda: None)
    for arguments in (["cache"], ["cache", "--clear"]):
        assert "SURGEON_CACHE_DIR" in output(capsys, *arguments)


@pytest.mark.parametrize("writes", [False, True])
def test_demo_works_on_a_copy(
    writes: bool,
    demo_model: Path,
    demo_imatrix: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Path] = []

    def run(path: Path, imatrix: Path, recipe: Path | None) -> int:
        assert path.read_bytes() == demo_model.read_bytes()
        assert imatrix.read_bytes() == demo_imatrix.read_bytes()
        assert (path.parent, recipe) == (imatrix.parent, None)
        seen.append(path.parent)
        if writes:
            (path.parent / "mine.gguf").write_bytes(b"result")
        return 0

    monkeypatch.setattr(demo, "require_terminal", lambda _what: None)
    module = types.ModuleType("surgeon.tui.app")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "surgeon.tui.app", module)
    assert demo.main([]) == 0
    (folder,) = seen
    assert folder != demo_model.parent
    assert folder.exists() == writes
    if writes:
        assert capsys.readouterr().out == f"kept {folder} for mine.gguf\n"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


# ------------------------------------------------------------------- exit codes


@pytest.mark.parametrize("command", ["show", "stats", "verify"])
def test_damage_is_one_line_and_exit_code_1(command: str, golden_models: Path) -> None:
    name = "bad-short.imatrix.dat" if command == "stats" else "bad-truncated.gguf"
    done = surgeon(command, golden_models / name)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"surgeon: {golden_models / name}: ")


@pytest.mark.parametrize("arguments", [["stats"], ["show", "--nothing", "x"], ["verify", "a", "b"], ["cache", "now"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    done = surgeon(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: surgeon {arguments[0]}")


def test_a_closed_pipe_is_no_error(demo_model: Path) -> None:
    command = f"{sys.executable} -m surgeon show {demo_model} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_terminals_that_are_not_utf8_and_strange_file_names(tmp_path: Path, demo_imatrix: Path) -> None:
    done = surgeon("stats", demo_imatrix, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03a3(Bias)" in done.stdout
    strange = os.path.join(os.fsencode(tmp_path), b"a\xff\x1b[2J\n.gguf")
    done = surgeon("show", os.fsdecode(strange))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_a_mistyped_command_is_told_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_command, "require_terminal", lambda _what: None)
    with pytest.raises(UsageError, match="neither a file nor a command; did you mean quantize"):
        cli.run(["quantise"])
    with pytest.raises(SurgeonError, match=r"^absent\.gguf: cannot be read"):
        cli.run(["absent.gguf"])
