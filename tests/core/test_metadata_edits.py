"""Metadata keys that are set, deleted and shown: on the command line, in the plan, in a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from surgeon.cli import run
from surgeon.errors import SurgeonError
from surgeon.gguf.values import Value, ValueType
from surgeon.llama_quantize.arguments import parse_setting
from surgeon.llama_quantize.options import parse_job
from surgeon.llama_quantize.translation import export
from surgeon.model.model import load_model
from surgeon.plan.plan import KVOverride, Plan, with_key, with_key_as_stored, without_key
from surgeon.plan.recipe import Recipe, read_recipe, to_toml
from surgeon.resolve.metadata import concrete
from surgeon.resolve.resolve import resolve


def test_keys_are_set_deleted_and_read_from_a_file(demo_model: Path, tmp_path: Path) -> None:
    template, out = tmp_path / "chat.jinja", tmp_path / "out.gguf"
    template.write_text("{% for m in messages %}\n{{ m.content }}\n{% endfor %}", encoding="utf-8")
    edits = ["--set", "general.name=mine", "--set", "llama.context_length=64", "--delete-key", "tokenizer.ggml.scores"]
    words = ["quantize", *edits, "--chat-template-file", str(template), str(demo_model), str(out), "COPY"]
    assert run(words) == 0
    fields = gguf.GGUFReader(out).fields
    assert fields["general.name"].contents() == "mine"
    assert fields["tokenizer.chat_template"].contents() == template.read_text()
    assert fields["llama.context_length"].contents() == 64
    assert fields["llama.context_length"].types == gguf.GGUFReader(demo_model).fields["llama.context_length"].types
    assert "tokenizer.ggml.scores" not in fields


@pytest.mark.parametrize(
    ("stored", "text", "kind", "value"),
    [
        (Value.of(ValueType.STRING, "a"), "12", "str", "12"),
        (Value.of(ValueType.UINT16, 3), "12", "int", 12),
        (Value.of(ValueType.FLOAT32, 3.0), "12", "float", 12.0),
        (Value.of(ValueType.BOOL, True), "false", "bool", False),
        (None, "12", "int", 12),
        (None, "1e-5", "float", 1e-5),
        (None, "true", "bool", True),
        (None, "a=b", "str", "a=b"),
    ],
)
def test_a_value_is_of_the_type_that_the_key_has(stored: Value | None, text: str, kind: str, value: object) -> None:
    assert concrete(parse_setting(f"k={text}"), stored) == KVOverride("k", kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (Value.of(ValueType.UINT32, 3), "many"),
        (Value.of(ValueType.BOOL, True), "1"),
        (Value.array(ValueType.INT32, [1]), "1"),
    ],
)
def test_what_is_not_of_that_type_is_refused(stored: Value, text: str) -> None:
    with pytest.raises(SurgeonError, match=r"^k is "):
        concrete(parse_setting(f"k={text}"), stored)


def test_a_key_is_decided_once(demo_model: Path) -> None:
    plan = with_key(without_key(Plan(), "a"), KVOverride("a", "int", 1))
    assert (plan.override_kv, plan.deleted_keys) == ((KVOverride("a", "int", 1),), ())
    plan = without_key(plan, "a")
    assert (plan.override_kv, plan.deleted_keys) == ((), ("a",))
    assert with_key_as_stored(plan, "a") == Plan()
    with pytest.raises(SurgeonError, match=r"general\.architecture"):
        without_key(Plan(), "general.architecture")
    vital = resolve(load_model(demo_model), without_key(Plan(), "llama.block_count"), None)
    assert any("llama.block_count" in problem.text for problem in vital.problems)


def test_a_recipe_keeps_them_and_the_export_says_what_it_cannot(demo_model: Path) -> None:
    words = ["--set", "llama.context_length=64", "--delete-key", "general.name", "in.gguf", "COPY"]
    plan = parse_job(words).plan
    assert read_recipe(to_toml(Recipe(plan)), Path("/"), "r").plan == plan
    exported = export(Recipe(plan), "in.gguf", "out.gguf", load_model(demo_model))
    assert "--override-kv llama.context_length=int:64" in exported.command()
    assert any("general.name" in remark for remark in exported.remarks)


def test_keys_are_shown(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--metadata", str(demo_model)]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["llama.block_count"] == ["uint32", "12"]
    assert lines["tokenizer.ggml.tokens"] == ["array", "4096", "×", "string"]
    assert run(["show", "--key", "llama.block_count", str(demo_model)]) == 0
    assert capsys.readouterr().out == "12\n"
    assert run(["show", "--metadata", "--json", str(demo_model)]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokenizer.ggml.tokens"]["value"]) == 4096
    with pytest.raises(SurgeonError, match=r"did you mean llama\.block_count"):
        run(["show", "--key", "llama.blockcount", str(demo_model)])
