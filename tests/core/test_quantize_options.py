"""llama-quantize's command line: grammar, defaults, precedence, and a sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_builder import toy_llama

from surgeon.commands import quantize
from surgeon.errors import SurgeonError
from surgeon.llama_quantize.options import parse_job
from surgeon.model.model import load_model
from surgeon.plan.plan import KVOverride, TypeRule
from surgeon.session.session import Session
from surgeon.session.typed_edits import parse_command


def test_the_plain_form() -> None:
    job = parse_job(["in.gguf", "out.gguf", "Q4_K_M", "4"])
    assert (job.input, job.output, job.threads) == (Path("in.gguf"), Path("out.gguf"), 4)
    assert job.plan.file_type == "Q4_K_M"
    assert not any((job.dry_run, job.json, job.overwrite, job.resume, job.plan.compat))


@pytest.mark.parametrize(
    ("text", "name"),
    [("q4_k_m", "Q4_K_M"), ("15", "Q4_K"), ("15abc", "Q4_K"), ("0", "F32"), ("copy", "COPY"), ("Q4_K", "Q4_K")],
)
def test_types_by_name_in_any_case_and_by_number(text: str, name: str) -> None:
    assert parse_job(["in.gguf", "out.gguf", text]).plan.file_type == name


def test_without_output_it_is_named_after_the_type() -> None:
    assert parse_job(["dir/in.gguf", "q8_0"]).output == Path("dir/ggml-model-Q8_0.gguf")
    assert parse_job(["--keep-split", "in.gguf", "q8_0"]).output == Path("ggml-model-Q8_0")
    assert parse_job(["--keep-split", "in.gguf", "out.gguf", "q8_0"]).output == Path("out")
    # a second word that is a type is never an output
    assert parse_job(["in.gguf", "7", "3"]).output == Path("ggml-model-Q8_0.gguf")


@pytest.mark.parametrize(("threads", "meant"), [("0", 0), ("-3", 0), ("8x", 8)])
def test_threads(threads: str, meant: int) -> None:
    assert parse_job(["in.gguf", "out.gguf", "Q8_0", threads]).threads == meant


def test_every_option_reaches_the_plan(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("ffn_down=q5_k\n  blk\\.0=F16 ")
    words = (
        "--allow-requantize --leave-output-tensor --pure --imatrix ./im.gguf --include-weights ffn --include-weights "
        f"attn --output-tensor-type q8_0 --token-embedding-type Q4_K --tensor-type attn_v=q6_k --tensor-type-file "
        f"{tmp_path}/rules.txt --tensor-type attn_q=q3_k --prune-layers 7,2 --prune-layers 2,11x --keep-split "
        "--override-kv a.b=int:-7 --override-kv c=float:1e3 --override-kv d=bool:false --override-kv e=str:x=y:z "
        "--max-buffer-size 64 --hide-imatrix --i-know --json --dry-run --resume --compat in.gguf Q6_K"
    )
    job = parse_job(words.split())
    plan = job.plan
    assert plan.rules == (
        TypeRule("attn_v", "Q6_K"),
        TypeRule("ffn_down", "Q5_K"),
        TypeRule("blk\\.0", "F16"),
        TypeRule("attn_q", "Q3_K"),
    )
    assert plan.pruned == {2, 7, 11}
    assert plan.override_kv == (
        KVOverride("a.b", "int", -7),
        KVOverride("c", "float", 1000.0),
        KVOverride("d", "bool", False),
        KVOverride("e", "str", "x=y:z"),
    )
    assert (plan.output_tensor_type, plan.token_embedding_type) == ("Q8_0", "Q4_K")
    assert (plan.include_weights, plan.imatrix_file, job.imatrix) == (("ffn", "attn"), "./im.gguf", "./im.gguf")
    assert plan.pure
    assert plan.leave_output_tensor
    assert plan.allow_requantize
    assert plan.keep_split
    assert plan.hide_imatrix
    assert plan.know_risks
    assert plan.compat
    assert job.json
    assert job.dry_run
    assert job.resume
    assert job.max_buffer_bytes == 64 << 20


def test_split_size_in_decimal_units() -> None:
    assert parse_job("--split-max-size 500M in.gguf Q8_0".split()).split_max_bytes == 500_000_000
    assert parse_job("--split-max-size 2G in.gguf Q8_0".split()).split_max_bytes == 2_000_000_000


def test_how_to_split_is_what_the_command_line_says_not_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('format = 1\ntype = "Q8_0"\nsplit-max-bytes = 1000000\n')
    job = parse_job(["--recipe", str(recipe), "--keep-split", "in.gguf", "out.gguf"])
    assert (job.plan.keep_split, job.split_max_bytes, job.output) == (True, 0, Path("out"))
    recipe.write_text('format = 1\ntype = "Q8_0"\nkeep-split = true\n')
    job = parse_job(["--recipe", str(recipe), "--split-max-size", "5M", "in.gguf", "out.gguf"])
    assert (job.plan.keep_split, job.split_max_bytes, job.output) == (False, 5_000_000, Path("out.gguf"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--no-such in.gguf Q8_0", "unknown option --no-such"),
        ("--tensor-typ a=q8_0 in.gguf Q8_0", "did you mean --tensor-type"),
        ("--imatrix=f in.gguf Q8_0", "as two words"),
        ("--imatrix", "--imatrix needs an argument"),
        ("in.gguf", "INPUT and TYPE are needed"),
        ("in.gguf out.gguf", "TYPE is missing"),
        ("in.gguf out.gguf Q4_Z", "unknown TYPE 'Q4_Z'"),
        ("in.gguf out.gguf Q8_0 --pure", "options come before INPUT"),
        ("in.gguf out.gguf Q8_0 4 --pure", "options come before INPUT"),
        ("in.gguf --pure Q8_0", "--pure after INPUT: options come before INPUT"),
        ("--include-weights a --exclude-weights b in.gguf Q8_0", "exclude each other"),
        ("--prune-layers 1,x in.gguf Q8_0", "'x' is not a layer number"),
        ("--prune-layers -3 in.gguf Q8_0", "'-3' is not a layer number"),
        ("--prune-layers 1,,2 in.gguf Q8_0", "'' is not a layer number"),
        ("--prune-layers 2,11x in.gguf Q8_0", "'11x' is not a layer number"),
        ("--prune-layers 5-3 in.gguf Q8_0", "'5-3' is not a run of layers"),
        ("--prune-layers 0-99999999 in.gguf Q8_0", "'0-99999999' is not a run of layers"),
        ("--tensor-type ffn_up=q4_K_M in.gguf Q8_0", "is a mix, not a tensor type"),
        ("--tensor-type-file absent.txt in.gguf Q8_0", "absent.txt: cannot be read"),
        ("--output-tensor-type q99 in.gguf Q8_0", "unknown tensor type 'q99'"),
        ("--override-kv a=double:1 in.gguf Q8_0", "KEY=TYPE:VALUE"),
        ("--override-kv a=bool:yes in.gguf Q8_0", "a bool is true or false"),
        ("--override-kv a=int:ten in.gguf Q8_0", "'ten' is not a number"),
        ("--override-kv a=float:1.5x in.gguf Q8_0", "'1.5x' is not a number"),
        ("--max-buffer-size 0 in.gguf Q8_0", "above 0"),
        ("--split-max-size 5T in.gguf Q8_0", "write a number and M or G"),
        ("--keep-split --split-max-size 5M in.gguf Q8_0", "exclude each other"),
        ("--recipe absent.toml in.gguf", "absent.toml: cannot be read"),
    ],
)
def test_every_mistake_has_its_sentence_and_exit_code_1(words: str, sentence: str) -> None:
    with pytest.raises(SurgeonError) as caught:
        parse_job(words.split())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("words", "pruned"), [("", {1, 3, 4, 5, 9}), ("--compat ", {1, 3, 9})])
def test_a_run_of_layers_is_its_first_only_with_compat(words: str, pruned: set[int]) -> None:
    job = parse_job(f"{words}--prune-layers 3-5,1 --prune-layers 9 in.gguf Q8_0".split())
    assert job.plan.pruned == pruned


def test_numbers_of_overrides_are_read_as_c_does_only_with_compat() -> None:
    job = parse_job("--compat --override-kv a=int:ten --override-kv b=float:1.5x in.gguf Q8_0".split())
    assert [override.value for override in job.plan.override_kv] == [0, 1.5]


def test_long_texts_are_refused_only_with_compat() -> None:
    words = ["--override-kv", "a.b=str:" + "x" * 128, "in.gguf", "Q8_0"]
    assert parse_job(words).plan.override_kv[0].value == "x" * 128
    with pytest.raises(SurgeonError, match="at most 127 bytes"):
        parse_job(["--compat", *words])


def test_input_and_output_may_not_be_the_same_file(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    with pytest.raises(SurgeonError, match="the same file"):
        parse_job([str(model), str(link), "Q8_0"])
    hard = tmp_path / "hard.gguf"
    hard.hardlink_to(model)
    with pytest.raises(SurgeonError, match="the same file"):
        parse_job([str(model), str(hard), "Q8_0"])


def test_a_recipe_gives_the_type_and_the_command_line_comes_first(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('format = 1\ntype = "Q5_K_M"\nrules = ["attn_v=q6_k"]\nprune = [3]\nthreads = 2\n')
    job = parse_job(
        ["--recipe", str(recipe), "--tensor-type", "attn_v=q8_0", "--prune-layers", "4", "in.gguf", "out.gguf"]
    )
    assert job.plan.file_type == "Q5_K_M"
    assert job.plan.rules == (TypeRule("attn_v", "Q8_0"), TypeRule("attn_v", "Q6_K"))
    assert job.plan.pruned == {3, 4}
    assert job.threads == 2
    assert parse_job(["--recipe", str(recipe), "in.gguf"]).output == Path("ggml-model-Q5_K_M.gguf")
    assert parse_job(["--recipe", str(recipe), "in.gguf", "out.gguf", "Q8_0", "1"]).plan.file_type == "Q8_0"


def test_help_names_every_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "IQ2_XXS" in told
    assert "COPY" in told
    assert "--save-imatrix" in told
    assert quantize.main([]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--prune-layers", "9" * 5000],
        ["--feedback-rounds", "9" * 5000],
        ["--max-buffer-size", "9" * 5000],
        ["--split-max-size", "9" * 5000 + "G"],
        ["--override-kv", "a.b=int:" + "9" * 5000],
    ],
)
def test_numbers_of_thousands_of_digits_are_refused_in_a_line(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match=r"too large|whole number|not a layer number") as refused:
        parse_job([*words, "in.gguf", "out.gguf", "Q4_K_M"])
    assert len(str(refused.value)) < 300
    session = Session(load_model(toy_llama(tmp_path / "m.gguf")))
    with pytest.raises(SurgeonError) as refused:
        parse_command(" ".join(words), session)  # as typed on the screen
    assert "\n" not in str(refused.value)


def test_a_number_of_64_bits_is_read() -> None:
    job = parse_job(["--override-kv", f"a.b=int:{-(2**63)}", "--prune-layers", "00003", "in.gguf", "out.gguf", "Q4_0"])
    assert job.plan.override_kv[0].value == -(2**63)
    assert job.plan.pruned == {3}
