"""Whatever goes wrong is one line, and nothing is lost."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_helpers import ONE_THREAD, TEXT, Base, at_each, run

from surgeon.engine import client, libraries
from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError, EngineMissing
from surgeon.engine.protocol import DivergenceJob, Engine, ImatrixJob, PerplexityJob, Step, TaskJob
from surgeon.errors import Cancelled, DiskFull


def long_job(model: Path) -> PerplexityJob:
    return PerplexityJob(str(model), str(TEXT), n_ctx=16, n_batch=16, n_ubatch=16)


def surgeon(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surgeon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT", "SIGSEGV"])
def test_a_child_that_dies_is_one_line(demo_model: Path, name: str) -> None:
    engine_run = EngineRun(ONE_THREAD, long_job(demo_model))

    def kill() -> None:
        assert engine_run.process is not None
        os.kill(engine_run.process.pid, getattr(signal, name))

    with pytest.raises(EngineError, match=name) as caught:
        at_each(Step, engine_run.messages(), kill)
    assert "\n" not in str(caught.value)
    assert str(engine_run.log) in str(caught.value)
    assert "llama" in engine_run.log_text()


def test_a_cancelled_run_leaves_no_child(demo_model: Path) -> None:
    cancelled = threading.Event()
    engine_run = EngineRun(ONE_THREAD, long_job(demo_model), cancelled)
    with pytest.raises(Cancelled):
        at_each(Step, engine_run.messages(), cancelled.set)
    assert engine_run.process is not None
    assert engine_run.process.returncode == -signal.SIGKILL


def test_a_run_that_is_not_read_to_the_end_leaves_no_child(demo_model: Path) -> None:
    engine_run = EngineRun(ONE_THREAD, long_job(demo_model))
    messages = engine_run.messages()
    next(messages)
    messages.close()  # type: ignore[attr-defined]
    assert engine_run.process is not None
    assert engine_run.process.returncode is not None


def test_a_child_without_a_parent_ends(demo_model: Path) -> None:
    process = client._start(subprocess.DEVNULL)  # type: ignore[arg-type]
    client._send(process, ONE_THREAD, long_job(demo_model))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 3
    process.stdout.close()


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("not a model")
    with pytest.raises(EngineError, match=re.escape(f"{path}: llama.cpp cannot load this model")):
        run(PerplexityJob(str(path), str(TEXT)))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        run(PerplexityJob(str(tmp_path / "model.gguf"), str(TEXT)))


def test_a_text_that_is_too_short(demo_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    for job in (PerplexityJob(str(demo_model), str(text)), ImatrixJob(str(demo_model), str(text))):
        with pytest.raises(EngineError, match=r"short.txt: \d+ tokens, but -c 512 needs 1024"):
            run(job)


def test_a_base_of_another_vocabulary(demo_model: Path, base: Base, tmp_path: Path) -> None:
    other = tmp_path / "other.kld"
    raw = bytearray(base.path.read_bytes())
    raw[12:16] = (4094).to_bytes(4, "little")
    other.write_bytes(raw)
    with pytest.raises(EngineError, match="saved from a model with a vocabulary of 4094 tokens"):
        run(DivergenceJob(str(demo_model), str(other)))


def test_a_base_of_another_text(demo_model: Path, base: Base, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text(TEXT.read_text().replace("keeper", "sailor"))
    with pytest.raises(EngineError, match="gives other tokens than those saved there"):
        run(DivergenceJob(str(demo_model), str(base.path), text=str(text)))


@pytest.mark.parametrize("length", [0, 10, 19, 30, 5000])
def test_a_base_that_is_cut_off(demo_model: Path, base: Base, tmp_path: Path, length: int) -> None:
    cut = tmp_path / "cut.kld"
    cut.write_bytes(base.path.read_bytes()[:length])
    with pytest.raises(EngineError, match=r"cut off|not a file of saved log-probabilities"):
        run(DivergenceJob(str(demo_model), str(cut)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(demo_model: Path) -> None:
    with pytest.raises(DiskFull, match="No space left on device"):
        run(PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, save_base="/dev/full"))


def test_task_files_that_are_none(demo_model: Path) -> None:
    for task in ("hellaswag", "winogrande", "multiple-choice"):
        with pytest.raises(EngineError, match=r"lighthouse.txt: "):
            run(TaskJob(str(demo_model), task, str(TEXT)))


def test_without_the_extra_the_commands_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EngineMissing, match=re.escape("pip install 'gguf-surgeon[engine]'")):
        libraries.find_libraries()


def test_a_directory_without_llama_cpp(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="no libllama"):
        run(long_job(demo_model), Engine(library=str(tmp_path)))
    done = surgeon("perplexity", "-m", str(demo_model), "-f", str(TEXT), LLAMA_CPP_LIB_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'gguf-surgeon[engine]'" in last_line(done)


def test_a_library_that_does_not_load(demo_model: Path, tmp_path: Path) -> None:
    for name in ("libllama.so", "libggml.so", "libggml-base.so"):
        (tmp_path / name).write_text("no library")
    with pytest.raises(EngineMissing, match="does not load"):
        run(long_job(demo_model), Engine(library=str(tmp_path)))


def test_a_missing_libgomp_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(EngineMissing, match="apt install libgomp1"):
        Binding(libraries.find_libraries())


def test_a_toy_model_with_other_logits_is_refused() -> None:
    code = (
        "import numpy as np\n"
        "from surgeon.engine.child.llama import toy\n"
        "from surgeon.engine.child.llama.binding import Binding\n"
        "from surgeon.engine.libraries import find_libraries\n"
        "binding = Binding(find_libraries())\n"
        "toy.check(binding)\n"
        "toy._expected = lambda embeddings, output: np.zeros((4, 64), np.float32)\n"
        "try:\n    toy.check(binding)\nexcept Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "fails the toy model (its logits are off by" in done.stdout
    assert "pip install 'gguf-surgeon[engine]'" in done.stdout


def test_a_place_that_cannot_be_written(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "base.kld"
    done = surgeon("perplexity", "-m", str(demo_model), "-f", str(TEXT), "--kl-divergence-base", str(target))
    assert done.returncode == 1
    assert last_line(done).startswith(f"surgeon: {target}: {target.parent} is a file and not a folder")


def test_no_chunks_is_a_usage_error(demo_model: Path) -> None:
    done = surgeon("perplexity", "-m", str(demo_model), "-f", str(TEXT), "--chunks", "0")
    assert done.returncode == 2
    assert "must not be 0" in last_line(done)


def test_interrupt_saves_what_there_is(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    text = tmp_path / "long.txt"
    text.write_text(TEXT.read_text() * 40)
    arguments = [
        "-m",
        str(demo_model),
        "-f",
        str(text),
        "-o",
        str(out),
        "-c",
        "32",
        "-b",
        "32",
        "-ofreq",
        "1",
        "-t",
        "1",
    ]
    command = [sys.executable, "-m", "surgeon", "imatrix", *arguments]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)
    partial = tmp_path / "imatrix.gguf.partial"
    deadline = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"what was collected is in {partial}; --resume continues it" in errors
    assert partial.exists()
    assert not out.exists()


def test_only_the_last_logs_are_kept(home: Path, demo_model: Path) -> None:
    folder = client.log_folder()
    assert home in folder.parents
    for number in range(30):
        (folder / f"engine-2020-{number:02}.log").write_text("old")
    run(PerplexityJob(str(demo_model), str(TEXT), n_ctx=64, n_chunks=1))
    assert len(list(folder.glob("engine-*.log"))) == 20


def test_the_reason_is_found_in_a_log() -> None:
    log = "loading\nggml.c:10: GGML_ASSERT(x) failed\nsome more\n"
    assert client.last_telling_line(log) == "ggml.c:10: GGML_ASSERT(x) failed"
    assert client.last_telling_line("all well\n") == ""
