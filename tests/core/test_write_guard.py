"""No file is ever destroyed: what may be written where, asked of every way to write."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import toy_llama

from surgeon import cli
from surgeon.errors import SurgeonError
from surgeon.imatrix.files import save_dat, save_gguf
from surgeon.imatrix.imatrix import Imatrix, ImatrixEntry
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, save_recipe
from surgeon.trials.journal import Journal, new_trial
from surgeon.whole_files import write_whole, written_whole
from surgeon.write_guard import NEW, REPLACE, Kind, Permit, WriteRefused, kind_of, may_write, same_file

FLOATS = np.ones((1, 4), np.float32)


def matrix(path: Path) -> Imatrix:
    return Imatrix(path, {"blk.0.attn_q.weight": ImatrixEntry(FLOATS, np.array([4]))}, ("t.txt",), 1, 4)


def make(kind: str, path: Path) -> Path:
    """A file of each kind that is about in these folders."""
    if kind == "model":
        return toy_llama(path)
    if kind == "imatrix":
        save_gguf(matrix(path), path)
    elif kind == "old imatrix":
        save_dat(matrix(path), path)
    elif kind == "logits":
        path.write_bytes(b"_logits_" + struct.pack("<iii", 8, 16, 1) + bytes(64))
    elif kind == "text":
        path.write_text("what I did today\n")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    return path


KINDS = {
    "model": Kind.MODEL,
    "imatrix": Kind.IMATRIX,
    "old imatrix": Kind.IMATRIX,
    "logits": Kind.LOGITS,
    "text": Kind.TEXT,
    "empty": Kind.EMPTY,
    "picture": Kind.UNKNOWN,
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_told_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    assert kind_of(make(name, tmp_path / "x.txt")) is KINDS[name]


def test_the_bundled_files_are_what_they_are(demo_model: Path, demo_imatrix: Path, golden_models: Path) -> None:
    assert kind_of(demo_model) is Kind.MODEL
    assert kind_of(demo_imatrix) is Kind.IMATRIX
    for path in golden_models.iterdir():
        expected = Kind.IMATRIX if ".imatrix." in path.name or path.suffix == ".dat" else Kind.MODEL
        if path.suffix in (".gguf", ".dat") and path.name != "bad-magic.gguf" and path.stat().st_size:
            assert kind_of(path) is expected, path


@pytest.mark.parametrize("cut", [4, 8, 23, 24, 31, 40, 60])
def test_a_gguf_cut_anywhere_is_guarded_as_a_model(tmp_path: Path, cut: int) -> None:
    path = make("imatrix", tmp_path / "i.gguf")
    os.truncate(path, cut)
    assert kind_of(path) is Kind.MODEL


@pytest.mark.parametrize("kind", [Kind.MODEL, Kind.IMATRIX, Kind.LOGITS, Kind.TEXT])
@pytest.mark.parametrize("there", KINDS)
def test_only_its_own_kind_is_ever_replaced(tmp_path: Path, kind: Kind, there: str) -> None:
    path = make(there, tmp_path / "x")
    with pytest.raises(WriteRefused):
        may_write(path, kind, NEW)
    if KINDS[there] in (kind, Kind.EMPTY):
        assert may_write(path, kind, REPLACE) == path
    else:
        with pytest.raises(WriteRefused, match=r"x: is an? .* never replaces one; choose another name"):
            may_write(path, kind, REPLACE)


def aliases(path: Path, folder: Path) -> list[Path]:
    """Other names of one file."""
    (folder / "soft").symlink_to(path)
    (folder / "soft2").symlink_to(folder / "soft")
    (folder / "hard").hardlink_to(path)
    (folder / "dir").symlink_to(path.parent)
    return [
        path,
        folder / "soft",
        folder / "soft2",
        folder / "hard",
        folder / "dir" / path.name,
        path.parent / ".." / path.parent.name / path.name,
        Path(os.path.relpath(path)),
    ]


def test_an_input_is_refused_by_every_alias(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = make("model", tmp_path / "a" / "in.gguf")
    for alias in aliases(source, tmp_path / "b"):
        assert same_file(alias, source)
        with pytest.raises(WriteRefused, match=r"is the input .*in.gguf itself; the input is never changed"):
            may_write(alias, Kind.MODEL, Permit((source,), replace=True))


def test_two_outputs_must_differ_also_before_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "dir").symlink_to(tmp_path)
    for other in (tmp_path / "out", tmp_path / "dir" / "out", tmp_path / "x" / ".." / "out"):
        with pytest.raises(WriteRefused, match=r"give each output a name of its own"):
            may_write(tmp_path / "out", Kind.MODEL, Permit(outputs=(other,)))
    assert may_write(tmp_path / "out", Kind.MODEL, Permit(outputs=(tmp_path / "out2",))) == tmp_path / "out"


@pytest.mark.parametrize("place", ["/dev/null", "missing/x", "folder"])
def test_places_where_no_file_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteRefused, match=r"device or pipe|does not exist; make it first|is a folder; give the name"):
        may_write(tmp_path / place, Kind.TEXT, REPLACE)


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    make("text", tmp_path / "real.toml")
    (tmp_path / "link.toml").symlink_to("real.toml")
    write_whole(tmp_path / "link.toml", "new", permit=REPLACE)
    assert (tmp_path / "link.toml").is_symlink()
    assert (tmp_path / "real.toml").read_text() == "new"


def interrupted_by(other: str, path: Path, permit: Permit) -> None:
    with written_whole(path, Kind.TEXT, permit) as temporary:
        temporary.write_text("ours")
        make(other, path)


def test_what_appears_while_it_is_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for permit, other in ((NEW, "text"), (REPLACE, "model")):
        with pytest.raises(WriteRefused):
            interrupted_by(other, path, permit)
        assert kind_of(path) is KINDS[other]
        assert sorted(tmp_path.iterdir()) == [path]
        path.unlink()


def test_without_hard_links_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    write_whole(tmp_path / "a", "ours")
    assert (tmp_path / "a").read_text() == "ours"
    assert os.listdir(tmp_path) == ["a"]


def test_temporary_names_cannot_be_foretold_and_no_link_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    replace = os.replace

    def noting(source: str | Path, target: str | Path) -> None:
        seen.add(Path(source).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    victim = make("text", tmp_path / "victim")
    (tmp_path / f".r.toml.{os.getpid()}.part").symlink_to(victim)
    for _ in range(3):
        save_recipe(Recipe(Plan("Q8_0")), tmp_path / "r.toml", REPLACE)
    assert len(seen) == 3
    assert victim.read_text() == "what I did today\n"


def test_the_trials_are_never_added_to_another_file(tmp_path: Path) -> None:
    model = make("model", tmp_path / "m.gguf")
    before = model.read_bytes()
    journal = Journal.of_model(model, tmp_path)
    journal.path.parent.mkdir()
    journal.path.hardlink_to(model)
    with pytest.raises(WriteRefused, match=r"is the input .*m.gguf itself"):
        journal.add(new_trial("a", 1, 1))
    assert model.read_bytes() == before


# ------------------------------------------------------------------ the commands, one way to write after the other

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """One file of each kind, in a folder of their own."""
    folder = tmp_path / "files"
    folder.mkdir()
    found = {name: make(name, folder / name.replace(" ", "-")) for name in KINDS}
    save_recipe(Recipe(Plan("Q8_0")), folder / "recipe.toml")
    found["recipe"] = folder / "recipe.toml"
    return found


def quantize(files: Files, target: Path) -> list[str]:
    return ["quantize", str(files["model"]), str(target), "COPY"]


def apply(files: Files, target: Path) -> list[str]:
    return ["apply", str(files["recipe"]), str(files["model"]), str(target)]


def save_imatrix(files: Files, target: Path) -> list[str]:
    out = files["model"].with_name("out.gguf")
    out.unlink(missing_ok=True)
    words = ["--imatrix", str(files["imatrix"]), "--save-imatrix", str(target), "--prune-layers", "1"]
    return ["quantize", *words, str(files["model"]), str(out), "COPY"]


def merge(files: Files, target: Path) -> list[str]:
    return ["imatrix", "--in-file", str(files["imatrix"]), "-o", str(target), "--output-format", "gguf"]


def export_recipe(files: Files, target: Path) -> list[str]:
    rules = files["recipe"]
    rules.write_text("attn_v=q6_k\n")
    return ["export", "--from-type-file", str(rules), "-o", str(target)]


def export_rules(files: Files, target: Path) -> list[str]:
    recipe = files["recipe"]
    recipe.write_text('format = 1\ntype = "Q8_0"\nrules = ["attn_v=q6_k"]\n')
    return ["export", str(recipe), "--tensor-type-file", str(target)]


WAYS = {
    quantize: ("model",),
    apply: ("model",),
    save_imatrix: ("imatrix", "old imatrix"),
    merge: ("imatrix", "old imatrix"),
    export_recipe: ("text", "recipe"),
    export_rules: ("text", "recipe"),
}


def outcome(arguments: list[str]) -> str:
    """'' for success, else the one line."""
    line = ""
    try:
        assert cli.run(arguments) == 0
    except SurgeonError as error:
        line = str(error)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_command_leaves_what_it_must_not_write(way: Callable[[Files, Path], list[str]], files: Files) -> None:
    """Each kind of file as the target, without and with --overwrite; only its own kind is replaced, and only so."""
    folder = files["model"].parent
    for name in (*KINDS, "recipe"):
        for words in ([], ["--overwrite"]):
            target = folder / f"target-{name.replace(' ', '-')}"
            target.write_bytes(files[name].read_bytes())
            before = target.read_bytes()
            command = way(files, target)
            error = outcome([command[0], *words, *command[1:]])
            allowed = bool(words) and name in (*WAYS[way], "empty")
            assert allowed or target.read_bytes() == before, (name, words, error)
            assert (error == "") == allowed, (name, words, error)
            assert allowed or str(target) in error, error


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("source", ["model", "imatrix", "recipe"])
def test_no_command_writes_over_its_input(
    way: Callable[[Files, Path], list[str]], source: str, files: Files, tmp_path: Path
) -> None:
    reads = {quantize: "model", apply: "model recipe", save_imatrix: "model imatrix", merge: "imatrix",
             export_recipe: "recipe", export_rules: "recipe"}[way]  # fmt: skip
    if source not in reads.split():
        return
    way(files, tmp_path / "unused")  # writes the recipe that is to be read
    before = files[source].read_bytes()
    (tmp_path / "aliases").mkdir()
    for alias in aliases(files[source], tmp_path / "aliases"):
        command = way(files, alias)
        error = outcome([command[0], "--overwrite", *command[1:]])
        assert "itself" in error or "is the same" in error or "the same file" in error or "never replaces" in error
        assert files[source].read_bytes() == before
        assert not files["model"].with_name("out.gguf").exists()


def test_two_outputs_of_one_command_must_differ(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    for name in ("o.gguf", ".o.gguf.surgeon-part", ".o.gguf.surgeon-journal"):
        words = ["--imatrix", str(files["imatrix"]), "--save-imatrix", str(tmp_path / name)]
        error = outcome(["quantize", *words, str(files["model"]), str(out), "COPY"])
        assert "give each output a name of its own" in error, (name, error)
        assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_a_left_over_is_not_emptied_when_it_is_the_input(tmp_path: Path) -> None:
    source = make("model", tmp_path / ".out.gguf.surgeon-part")
    before = source.read_bytes()
    assert "itself" in outcome(["quantize", str(source), str(tmp_path / "out.gguf"), "COPY"])
    assert source.read_bytes() == before


def test_compat_replaces_no_file_unasked(files: Files, tmp_path: Path) -> None:
    out = make("model", tmp_path / "o.gguf")
    assert "already exists" in outcome(["quantize", "--compat", str(files["model"]), str(out), "Q8_0"])
