"""What tells models apart whose figures must not be mixed, and what still finds the files of earlier versions."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build_gguf, llama_kv

from surgeon.errors import SurgeonError
from surgeon.fleet.files import shared_files
from surgeon.gguf import identity
from surgeon.gguf.file import open_gguf
from surgeon.gguf.identity import file_identity, model_identity, open_identity, same_identity
from surgeon.measure.base_cache import Base
from surgeon.trials.journal import Journal, Measured, new_trial
from surgeon.trials.records import output_of, record

MIB = 1 << 20
EXPERTS = 64


def earlier_identity(path: Path) -> str:
    """What versions that looked only at the ends of a file made of it."""
    raw = path.read_bytes()
    return hashlib.sha256(len(raw).to_bytes(8, "little") + raw[:MIB] + raw[-MIB:]).hexdigest()[:16]


def large_model(path: Path, changed: Callable[[dict[str, np.ndarray]], None] = lambda _: None, **kv: object) -> Path:
    """Over a MiB of metadata in front, over a MiB of one tensor behind, and 16 layers of which some have experts."""
    rng = np.random.default_rng(1)
    tensors = {}
    for layer in range(16):
        name, shape = ("ffn_down_exps", (EXPERTS, 32, 64)) if layer % 2 else ("ffn_down", (256, 256))
        tensors[f"blk.{layer}.{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
    tensors["output.weight"] = np.zeros((2048, 256), np.float32)
    changed(tensors)
    keys = llama_kv(16) | {"tokenizer.chat_template": "a long one" * (MIB // 8)}
    return build_gguf(path, keys | kv, tensors)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return large_model(tmp_path / "model.gguf")


def other_layer(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.8.ffn_down.weight"] += 1


def other_expert(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.7.ffn_down_exps.weight"][37] += 1  # neither the first of its tensor nor in the middle


@pytest.fixture(params=[other_layer, other_expert, "quantize.imatrix.file"])
def sibling(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> Path:
    """Another model that differs from `model` only between the ends."""
    path = tmp_path / "sibling.gguf"
    if isinstance(request.param, str):
        build = {name: large_model(tmp_path / f"{name}.gguf", **{request.param: name}) for name in ("one", "two")}
        os.replace(build["one"], model)
        os.replace(build["two"], path)
    else:
        large_model(path, request.param)
    assert earlier_identity(path) == earlier_identity(model)
    return path


def test_models_that_differ_between_their_ends_are_two(model: Path, sibling: Path) -> None:
    assert model_identity(sibling) != model_identity(model)
    assert shared_files([sibling])[0].identity != shared_files([model])[0].identity


def test_a_copy_is_the_same_model(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(model.read_bytes())
    assert model_identity(copy) == model_identity(model)


def test_a_file_changed_in_place_is_another(model: Path) -> None:
    before = model_identity(model)
    with open_gguf(model) as file, model.open("r+b") as written:
        place = next(tensor for tensor in file.tensors if tensor.name == "blk.8.ffn_down.weight").offset
        state = model.stat()
        written.seek(place)
        written.write(b"\x55" * 16)
        written.flush()
        os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert model_identity(model) != before


def test_all_shards_make_the_identity_of_a_set(tmp_path: Path, model: Path, sibling: Path) -> None:
    sets = []
    for number, second in enumerate((model, sibling)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shards = [folder / f"m-0000{shard}-of-00002.gguf" for shard in (1, 2)]
        build_gguf(shards[0], llama_kv() | {"split.no": 0, "split.count": 2}, {})
        shards[1].write_bytes(second.read_bytes())
        sets.append(shards)
    assert model_identity(sets[0][0]) == model_identity(sets[0][1]), "whichever shard is named"
    assert model_identity(sets[0][0]) != model_identity(sets[1][0])


def test_texts_that_differ_in_the_middle_are_two(tmp_path: Path) -> None:
    raw = bytearray(random.Random(1).randbytes(3 * MIB))
    (tmp_path / "a.txt").write_bytes(raw)
    raw[len(raw) // 2 : len(raw) // 2 + 16_384] = bytes(16_384)
    (tmp_path / "b.txt").write_bytes(raw)
    assert file_identity(tmp_path / "a.txt") != file_identity(tmp_path / "b.txt")


def test_an_open_model_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_gguf(model) as file:
        first = open_identity(file)
        monkeypatch.setattr(identity, "model_identity", lambda _: pytest.fail("read again"))
        assert open_identity(file) == first


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match=r"nope\.gguf: cannot be read: No such file"):
        model_identity(tmp_path / "nope.gguf")


def test_every_model_has_a_base_of_its_own(model: Path, sibling: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    os.makedirs(tmp_path / "there")
    moved = tmp_path / "there" / model.name  # the name is part of a base's, and must not be what tells them apart
    os.replace(sibling, moved)
    bases = [Base(path, tmp_path / "text.txt", 64, 4, "engine", tmp_path).path for path in (model, moved)]
    assert bases[0] != bases[1]


def test_every_output_has_a_row_of_its_own(model: Path, sibling: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    first = record(journal, model, "without 9 and 10", measured=Measured({"mean_kld": 1.15}))
    second = record(journal, sibling, "without 7 and 8", measured=Measured({"mean_kld": 0.67}))
    found = {trial.id: trial.figure("mean_kld") for trial in journal.trials()}
    assert found == {first.id: 1.15, second.id: 0.67}


def test_every_model_has_a_journal_of_its_own(model: Path, sibling: Path, tmp_path: Path) -> None:
    Journal.of_model(model, tmp_path).add(new_trial("a", 1, 1))
    assert Journal.of_model(sibling, tmp_path).trials() == []


# --- what earlier versions kept


def test_the_journal_of_an_earlier_version_is_read_and_left_as_it_is(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    old = Journal(folder / f"{earlier_identity(model)}.jsonl")
    kept = old.add(new_trial("kept", 1, 1))
    raw = old.path.read_bytes()
    journal = Journal.of_model(model, tmp_path)
    fresh = journal.add(new_trial("fresh", 1, 1))
    journal.mark_best(kept.id)
    journal.add_measured(kept.id, Measured({"mean_kld": 0.5}))
    again = Journal.of_model(model, tmp_path).trials()
    assert [(trial.id, trial.best, trial.figure("mean_kld")) for trial in again] == [
        (kept.id, True, 0.5),
        (fresh.id, False, None),
    ]
    assert old.path.read_bytes() == raw
    journal.forget(kept.id)
    assert [trial.id for trial in Journal.of_model(model, tmp_path).trials()] == [fresh.id]


def test_a_row_of_an_earlier_version_is_its_files_alone(model: Path, sibling: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    old = new_trial("old", 1, 1, output=str(model), output_identity=earlier_identity(model), recipe="mix = 1\n")
    journal.add(replace(old, measured=Measured({"mean_kld": 1.0})))
    assert output_of(old) == model
    other = record(journal, sibling, "new", measured=Measured({"mean_kld": 2.0}))
    same = record(journal, model, "again", measured=Measured({"ppl": 9.0}))
    assert other.id != old.id == same.id
    assert same.output_identity == model_identity(model), "the row has the newer form from now on"
    assert [trial.figure("mean_kld") for trial in journal.trials()] == [1.0, 2.0]


def test_an_earlier_row_is_not_that_of_another_plan_under_its_name(model: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    identity = earlier_identity(model)
    old = journal.add(new_trial("old", 1, 1, output=str(model), output_identity=identity, recipe="mix = 1\n"))
    made = record(journal, model, "new", recipe="mix = 2\n")
    assert made.id != old.id


def test_identities_of_both_forms_are_compared_by_the_older(model: Path, sibling: Path) -> None:
    new, other = model_identity(model), model_identity(sibling)
    assert same_identity(earlier_identity(model), new)
    assert same_identity(new, earlier_identity(model))
    assert not same_identity(new, other)
    assert not same_identity("0" * 16, new)
    assert not same_identity("", new)
