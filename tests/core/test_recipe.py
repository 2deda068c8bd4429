"""Recipes: round trips, damaged files, export to llama-quantize and import from it, and the same bytes every time."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_builder import build_gguf, llama_kv, llama_tensors, toy_llama
from hypothesis import given
from hypothesis import strategies as st

from surgeon import cli
from surgeon.errors import SurgeonError
from surgeon.imatrix.files import load_imatrix
from surgeon.llama_quantize.options import parse_job
from surgeon.llama_quantize.translation import export, from_command, from_model, from_type_file
from surgeon.model.model import load_model
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import Healing, KVOverride, Plan, TypeRule, WriteSettings
from surgeon.plan.recipe import Recipe, RecipeError, file_sha256, load_recipe, save_recipe, to_toml
from surgeon.resolve.resolve import resolve
from surgeon.write_guard import REPLACE
from surgeon_kernels.formats import FORMATS

TYPES = st.sampled_from(sorted(FORMATS))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PATTERNS = TEXTS.filter(lambda text: "=" not in text)
OVERRIDES = st.one_of(
    st.builds(KVOverride, TEXTS, st.just("int"), st.integers(-(2**63), 2**63 - 1)),
    st.builds(KVOverride, TEXTS, st.just("float"), st.floats(allow_nan=False)),
    st.builds(KVOverride, TEXTS, st.just("bool"), st.booleans()),
    st.builds(KVOverride, TEXTS, st.just("str"), st.text(st.characters(exclude_categories=["Cs"]), max_size=200)),
)
PLANS = st.builds(
    Plan,
    file_type=st.sampled_from(sorted(FILE_TYPES)),
    rules=st.lists(st.builds(TypeRule, PATTERNS, TYPES), max_size=3).map(tuple),
    types=st.dictionaries(TEXTS, TYPES, max_size=3).map(lambda types: tuple(sorted(types.items()))),
    pruned=st.frozensets(st.integers(0, 200), max_size=4),
    output_tensor_type=st.none() | TYPES,
    token_embedding_type=st.none() | TYPES,
    include_weights=st.lists(TEXTS, max_size=2).map(tuple),
    exclude_weights=st.lists(TEXTS, max_size=2).map(tuple),
    override_kv=st.lists(OVERRIDES, max_size=3).map(tuple),
    pure=st.booleans(),
    leave_output_tensor=st.booleans(),
    allow_requantize=st.booleans(),
    keep_split=st.booleans(),
    hide_imatrix=st.booleans(),
    compat=st.booleans(),
    imatrix_file=st.none() | TEXTS,
    know_risks=st.booleans(),
    healing=st.none() | st.builds(Healing, TEXTS.map(lambda text: str(Path(f"/heals/{text}"))), TEXTS),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@given(PLANS, st.integers(0, 64), st.none() | st.integers(1, 2**40), st.integers(0, 2**40))
def test_a_saved_recipe_is_read_back(folder: Path, plan: Plan, threads: int, memory: int | None, split: int) -> None:
    recipe = Recipe(plan, settings=WriteSettings(threads, memory, split))
    save_recipe(recipe, folder / "r.toml", REPLACE)
    assert load_recipe(folder / "r.toml") == recipe


def test_the_imatrix_is_kept_by_path_and_hash(tmp_path: Path, demo_imatrix: Path) -> None:
    copy = tmp_path / "im.gguf"
    copy.write_bytes(demo_imatrix.read_bytes())
    recipe = Recipe(Plan("Q4_K_M"), imatrix=str(copy), imatrix_sha256=file_sha256(copy))
    save_recipe(recipe, tmp_path / "r.toml")
    assert 'file = "im.gguf"' in (tmp_path / "r.toml").read_text()
    # The folder may be moved with both in it; what is stored in the metadata stays as it was.
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    read = load_recipe(moved / "r.toml")
    assert read.imatrix == str(moved / "im.gguf")
    assert read.imatrix_sha256 == recipe.imatrix_sha256
    assert read.plan.imatrix_file == str(copy)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("format = 2\n", "this surgeon reads format = 1"),
        ("", "this surgeon reads format = 1"),
        ("format = 1\ntyp = 'Q8_0'\n", "unknown key 'typ'"),
        ("format = 1\ntype = 'Q9'\n", "unknown TYPE 'Q9'"),
        ("format = 1\nrules = ['attn_v']\n", "PATTERN=TYPE"),
        ("format = 1\nrules = 'attn_v=q6_k'\n", "a list is expected"),
        ("format = 1\nprune = ['1']\n", "a int is expected"),
        ("format = 1\nprune = [true]\n", "a int is expected"),
        ("format = 1\nprune = [-1]\n", "whole number ≥ 0"),
        ("format = 1\npure = 1\n", "a bool is expected"),
        ("format = 1\n[types]\nx = 'q99'\n", "unknown tensor type 'q99'"),
        ("format = 1\n[imatrix]\npath = 'x'\n", "unknown key 'path' in [imatrix]"),
        ("format = 1\n[[override_kv]]\nkey = 'a'\n", "are needed"),
        ("format = 1\n[[override_kv]]\nkey = 'a'\nkind = 'int'\nvalue = 1.5\n", "1.5 is not a valid int"),
        ("format = \n", "not valid TOML"),
        ("\xff", "this surgeon"),
    ],
)
def test_a_wrong_recipe_names_the_file_and_the_key(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "wrong.toml" in str(caught.value)
    if text != "\xff":
        assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_recipe(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "r.toml"
    with pytest.raises(SurgeonError, match=r"folder does not exist; make it first"):
        save_recipe(Recipe(Plan()), path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="is not UTF-8"):
        save_recipe(Recipe(Plan(override_kv=(KVOverride("k", "str", "\udcff"),))), tmp_path / "r.toml")
    assert not list(tmp_path.iterdir())


def as_llama_quantize(words: str) -> Plan:
    """The plan that llama-quantize would carry out for a command line."""
    assert words.startswith("llama-quantize ")
    return replace(parse_job(shlex.split(words)[1:]).plan, compat=True)


EXPORTED = [
    Plan("Q4_K_M"),
    Plan("Q4_K_M", rules=(TypeRule("blk.0.ffn_down", "Q4_K"),)),  # llama-quantize would shift the other ffn_down
    Plan("Q5_K_S", types=(("blk.3.attn_v.weight", "Q8_0"), ("token_embd.weight", "F16"))),
    Plan("Q4_K_M", pruned=frozenset({2, 7})),
    Plan("Q4_K_M", pruned=frozenset({2, 7}), rules=(TypeRule(r"blk\.8\.", "Q8_0"), TypeRule("attn_v", "Q5_K"))),
    Plan("Q6_K", pure=True, pruned=frozenset({0}), types=(("blk.11.ffn_up.weight", "Q4_0"),)),
    Plan("Q3_K_M", output_tensor_type="Q8_0", token_embedding_type="Q5_0", leave_output_tensor=True),
]


@pytest.mark.parametrize("plan", EXPORTED, ids=range(len(EXPORTED)))
@pytest.mark.parametrize("weighed", [False, True])
def test_the_exported_command_gives_every_tensor_its_type(
    demo_model: Path, demo_imatrix: Path, plan: Plan, weighed: bool
) -> None:
    model, imatrix = load_model(demo_model), load_imatrix(demo_imatrix) if weighed else None
    recipe = Recipe(plan, imatrix=str(demo_imatrix) if weighed else None)
    exported = export(recipe, "in.gguf", "out.gguf", model, imatrix)
    assert not exported.wrong
    ours = resolve(model, plan, imatrix)
    theirs = resolve(model, as_llama_quantize(exported.command()), imatrix)
    assert [(op.source, op.name, op.to_type) for op in ours.kept] == [
        (op.source, op.name, op.to_type) for op in theirs.kept
    ]


def test_rules_go_into_a_file_when_asked(demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_recipe(Recipe(Plan("Q4_K_M", rules=(TypeRule("attn_v", "Q8_0"),), pruned=frozenset({4}))), tmp_path / "r.toml")
    rules = tmp_path / "rules.txt"
    words = ["export", str(tmp_path / "r.toml"), "--model", str(demo_model), "--tensor-type-file", str(rules)]
    assert cli.run(words) == 0
    told = capsys.readouterr().out
    assert f"--tensor-type-file {rules}" in told
    plan = as_llama_quantize(told)
    model = load_model(demo_model)
    wanted = resolve(model, load_recipe(tmp_path / "r.toml").plan)
    assert [op.to_type for op in resolve(model, plan).kept] == [op.to_type for op in wanted.kept]


def test_what_llama_quantize_cannot_do_is_told(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan("COPY", types=(("blk.0.ffn_up.weight", "Q8_0"),), hide_imatrix=True)
    save_recipe(Recipe(plan), tmp_path / "r.toml")
    assert cli.run(["export", str(tmp_path / "r.toml"), "--model", str(demo_model)]) == 1
    told = capsys.readouterr().err
    assert "blk.0.ffn_up.weight: F16 instead of Q8_0" in told
    assert "always stores the imatrix's path" in told


def test_without_the_model_what_was_not_checked_is_told() -> None:
    plan = Plan("Q4_K_M", rules=(TypeRule(r"blk\.7\.", "Q8_0"),), pruned=frozenset({3}))
    remarks = " ".join(export(Recipe(plan), "in.gguf", "out.gguf").remarks)
    assert "layer numbers after pruning" in remarks
    assert "name the model" in remarks


def test_by_hand_types_are_renumbered_without_the_model() -> None:
    plan = Plan(
        "Q4_K_M", types=(("blk.7.ffn_up.weight", "Q8_0"), ("blk.3.ffn_up.weight", "Q8_0")), pruned=frozenset({3})
    )
    exported = export(Recipe(plan), "in.gguf", "out.gguf")
    assert exported.rules == (TypeRule(r"^blk\.6\.ffn_up\.weight$", "Q8_0"),)


def test_a_command_line_becomes_a_recipe_and_back() -> None:
    command = (
        "llama-quantize --tensor-type attn_v=q6_k --pure --imatrix im.gguf --prune-layers 1,4 "
        "--override-kv a.b=bool:true in.gguf out.gguf Q5_K_M 3"
    )
    recipe = from_command(f"./build/bin/{command}")
    assert recipe.imatrix == "im.gguf"
    plan = parse_job(shlex.split(command)[1:]).plan
    assert recipe.plan == plan
    assert as_llama_quantize(export(recipe, "in.gguf", "out.gguf").command()) == replace(plan, compat=True)


def test_what_llama_quantize_refuses_is_said_once_and_without_our_option(tmp_path: Path) -> None:
    kv = {key: value for key, value in llama_kv().items() if key != "llama.context_length"}
    model = load_model(build_gguf(tmp_path / "m.gguf", kv, llama_tensors()))
    (remark,) = export(Recipe(Plan("Q4_K_M")), str(tmp_path / "m.gguf"), "out.gguf", model).remarks
    assert remark.endswith("the key llama.context_length is missing, so llama-quantize refuses this file")
    assert remark.count("refuses") == 1


def test_what_a_command_says_beside_the_plan_is_in_its_recipe() -> None:
    words = "--max-buffer-size 64 --split-max-size 2G --moments m.gguf in.gguf out.gguf Q5_K_M 3 2>log"
    recipe = from_command(f"surgeon quantize {words}")
    assert recipe.settings == WriteSettings(3, 64 << 20, 2 * 10**9)
    assert recipe.moments == recipe.plan.moments_file == "m.gguf"
    assert from_command("llama-quantize in.gguf Q8_0 && ls").settings == WriteSettings()
    for option in ("--recipe", "--heal", "--prune-experts"):
        with pytest.raises(SurgeonError, match=f"{option}: a recipe made from a command cannot keep it"):
            from_command(f"surgeon quantize {option} 3 in.gguf out.gguf Q8_0")


def test_a_type_file_becomes_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("attn_v=q6_k ffn_down=Q5_K\n")
    plan = from_type_file(str(tmp_path / "rules.txt"), "q4_k_s").plan
    assert plan == Plan("Q4_K_S", rules=(TypeRule("attn_v", "Q6_K"), TypeRule("ffn_down", "Q5_K")))


def test_the_types_of_a_model_become_a_recipe(demo_model: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    words = ["quantize", "--tensor-type", r"blk\.[35]\.ffn_up=q8_0", str(demo_model), str(made), "Q4_K_M"]
    assert cli.run(words) == 0
    recipe = from_model(load_model(made))
    assert recipe.plan.file_type == "Q4_K_M"
    assert recipe.made_from == "made.gguf"
    again = resolve(load_model(demo_model), recipe.plan)
    assert {op.name: op.to_type for op in again.kept} == {t.name: t.type_name for t in load_model(made).tensors}


def test_the_types_of_an_unquantized_model_are_no_recipe(demo_model: Path) -> None:
    from surgeon.errors import SurgeonError

    with pytest.raises(SurgeonError, match="nothing in it is quantized"):
        from_model(load_model(demo_model))


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, demo_imatrix: Path) -> None:
    model = toy_llama(tmp_path / "m.gguf", layers=3)
    recipe = Recipe(Plan("Q4_K_M", rules=(TypeRule("ffn_up", "Q8_0"),), pruned=frozenset({1})))
    save_recipe(recipe, tmp_path / "r.toml")
    for name, threads in (("a", "1"), ("b", "3")):
        words = ["apply", str(tmp_path / "r.toml"), str(model), str(tmp_path / name), "--threads", threads]
        assert cli.run(words) == 0
    words = ["quantize", "--recipe", str(tmp_path / "r.toml"), str(model), str(tmp_path / "c")]
    assert cli.run(words) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_apply_wants_the_imatrix_the_recipe_was_made_with(
    demo_model: Path, demo_imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgeon.errors import SurgeonError

    recipe = Recipe(Plan("Q4_K_M"), imatrix=str(demo_imatrix), imatrix_sha256="0" * 64)
    save_recipe(recipe, tmp_path / "r.toml")
    with pytest.raises(SurgeonError, match="is not the imatrix the recipe was made with"):
        cli.run(["apply", str(tmp_path / "r.toml"), str(demo_model), str(tmp_path / "out.gguf")])
    assert not (tmp_path / "out.gguf").exists()


def test_json_of_apply(demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_recipe(Recipe(Plan("Q8_0", pruned=frozenset({0}))), tmp_path / "r.toml")
    out = tmp_path / "out.gguf"
    assert cli.run(["apply", str(tmp_path / "r.toml"), str(demo_model), str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["total_bytes"] == out.stat().st_size
    assert [tensor["name"] for tensor in told["tensors"]] == [tensor.name for tensor in load_model(out).tensors]
    assert {tensor["to"] for tensor in told["tensors"]} == {"Q8_0", "F32"}
    assert all(name.startswith("blk.0.") for name in told["pruned"])
    assert told["data_bytes"] == load_model(out).nbytes == sum(tensor["bytes"] for tensor in told["tensors"])


def test_toml_is_read_by_people() -> None:
    plan = Plan("Q4_K_M", rules=(TypeRule(r"\.1[0-9]\.", "Q6_K"),), pruned=frozenset({29, 26}))
    assert to_toml(Recipe(plan), Path(os.sep)) == (
        'format = 1\ntype = "Q4_K_M"\nrules = [\n    "\\\\.1[0-9]\\\\.=q6_k",\n]\nprune = [26, 29]\n'
    )
