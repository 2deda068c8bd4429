"""The session: edits, undo, scopes, importance matrices, recipes; and the filter and command languages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tui_helpers import rows_as_dict, session_of

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.layer_lists import spans
from surgeon.plan.recipe import load_recipe, save_recipe
from surgeon.session.filters import parse_filter
from surgeon.session.kept_plans import recipe_of, use_recipe
from surgeon.session.metrics import METRICS
from surgeon.session.rows import View, unfold_matches, visible_rows
from surgeon.session.session import Session, layer_key, layer_number
from surgeon.session.typed_edits import option_words, parse_command, without_option
from surgeon.trials.journal import Measured, new_trial
from surgeon.trials.tables import measured_on


@pytest.fixture
def session(demo_model: Path, demo_imatrix: Path) -> Session:
    return session_of(demo_model, demo_imatrix)


@pytest.fixture
def plain_session(demo_model: Path) -> Session:
    return session_of(demo_model)


# --- edits


def test_pruning_renumbers_at_once(session: Session) -> None:
    before = session.resolution.total_bytes
    assert session.toggle_prune([3, 5]) == "prune 3, 5"
    assert session.layers[3].number is None
    assert [session.layers[layer].number for layer in (2, 4, 6, 11)] == [2, 3, 4, 9]
    assert session.resolution.total_bytes < before
    assert session.toggle_prune([3, 5]) == "restore 3, 5"
    assert session.layers[11].number == 11


def test_layers_that_do_not_exist_cannot_be_pruned_nor_all(session: Session) -> None:
    with pytest.raises(SurgeonError, match="no layer 12"):
        session.toggle_prune([12])
    with pytest.raises(SurgeonError, match="every layer"):
        session.toggle_prune(range(12))
    assert not session.plan.pruned


def test_everything_is_undone_and_redone(session: Session, demo_imatrix: Path) -> None:
    start = session.plan
    session.toggle_prune([6])
    session.set_file_type("Q4_K_M")
    session.add_rule("attn_v=q6_k")
    session.set_types(["blk.0.ffn_down.weight"], "Q8_0")
    end, size = session.plan, session.resolution.total_bytes
    labels = [session.undo() for _ in range(4)]
    assert labels == ["blk.0.ffn_down.weight = q8_0", "rule attn_v=q6_k", "base type Q4_K_M", "prune 6"]
    assert session.plan == start
    assert session.undo() == f"imatrix {demo_imatrix.name}"
    assert session.imatrix is None
    assert session.measurements.tensors == {}
    assert session.undo() is None
    for _ in range(5):
        assert session.redo() is not None
    assert session.redo() is None
    assert (session.plan, session.resolution.total_bytes) == (end, size)
    assert session.imatrix is not None


def test_types_by_hand_go_before_rules(session: Session) -> None:
    session.set_file_type("Q4_K_M")
    session.add_rule("ffn_down=q5_k")
    session.set_types(["blk.1.ffn_down.weight"], "Q8_0")
    assert session.ops["blk.0.ffn_down.weight"].to_type == "Q5_K"
    assert session.ops["blk.1.ffn_down.weight"].to_type == "Q8_0"
    assert session.ops["blk.1.ffn_down.weight"].reason == "set by hand"
    session.set_types(["blk.1.ffn_down.weight"], None)
    assert session.ops["blk.1.ffn_down.weight"].to_type == "Q5_K"


def test_a_failing_edit_changes_nothing(session: Session) -> None:
    before = session.history
    with pytest.raises(SurgeonError):
        session.add_rule("attn_v=q7_k")
    with pytest.raises(SurgeonError):
        session.use_imatrix("/nonexistent/imatrix.gguf")
    assert session.history is before


def test_scopes(session: Session) -> None:
    row = "blk.2.ffn_up.weight"
    assert [tensor.name for tensor in session.scope("row", row)] == [row]
    assert len(session.reached("layer", row)) == 9
    for key in (row, layer_key(2)):
        names = {tensor.short for tensor in session.scope("layer", key)}
        assert names == {"ffn_down", "ffn_gate", "ffn_up", "attn_q", "attn_k", "attn_v", "attn_output"}, "no norms"
    assert len(session.scope("row", layer_key(2))) == 7
    assert len(session.scope("kind", row)) == 12
    assert len(session.scope("all", row)) == 86
    assert [tensor.name for tensor in session.scope("shown", row, {row, "blk.3.attn_norm.weight"})] == [row]
    assert session.scope("row", "blk.2.attn_norm.weight") == ()
    session.toggle_mark(row)
    session.toggle_mark(layer_key(5))
    assert len(session.scope("marked", row)) == 8
    session.toggle_prune([5])
    assert [tensor.name for tensor in session.scope("marked", row)] == [row]
    session.toggle_mark(row)
    assert session.marks == {layer_key(5)}


def test_coverage_and_shared_inputs(session: Session, plain_session: Session) -> None:
    assert session.coverage is not None
    assert (len(session.coverage.covered), len(session.coverage.missing)) == (85, 0)
    assert session.shares_input("blk.3.attn_q.weight") == ("attn_k", "attn_v")
    assert session.shares_input("blk.3.ffn_gate.weight") == ("ffn_up",)
    assert session.shares_input("blk.3.ffn_down.weight") == ()
    assert plain_session.coverage is None
    assert plain_session.shares_input("blk.3.attn_q.weight") == ()


def test_layer_zero_has_no_cossim(session: Session) -> None:
    cos = METRICS["cos"]
    assert session.measurements.of_layer(cos, 0) is None
    assert session.measurements.of_tensor(cos, "blk.0.ffn_up.weight") is None
    curve = session.measurements.curve(cos, None, range(12))
    assert curve[0] is None
    assert all(value is not None for value in curve[1:])
    assert session.measurements.fraction(cos, None, max(v for v in curve if v is not None)) == 1.0


def test_a_recipe_brings_its_imatrix(session: Session, plain_session: Session, tmp_path: Path) -> None:
    session.set_file_type("Q5_K_M")
    session.toggle_prune([4])
    save_recipe(recipe_of(session), tmp_path / "plan.toml")
    use_recipe(plain_session, load_recipe(tmp_path / "plan.toml"), "recipe plan.toml")
    assert plain_session.plan == session.plan
    assert plain_session.imatrix is not None
    assert plain_session.undo() == "recipe plan.toml"


def test_one_is_not_told_in_the_plural(session: Session) -> None:
    session.set_file_type("Q4_K_M")
    assert session.add_rule("blk.5.ffn_up=q6_k") == "rule blk.5.ffn_up=q6_k: 1 tensor"
    assert session.add_rule("ffn_up=q6_k") == "rule ffn_up=q6_k: 12 tensors"
    assert [figures.counted(number, "entry", "entries") for number in (0, 1, 2)] == [
        "0 entries",
        "1 entry",
        "2 entries",
    ]
    trial = new_trial("a", 1, 1, measured=Measured({}, {"text": "a.txt", "n_chunks": 1, "n_ctx": 64}))
    assert measured_on(trial) == "a.txt, 1 chunk of 64 tokens"


def test_a_recipe_without_its_imatrix_is_still_loaded(session: Session, plain_session: Session, tmp_path: Path) -> None:
    session.toggle_prune([4])
    recipe = replace(recipe_of(session), imatrix=str(tmp_path / "gone.gguf"))
    said = use_recipe(plain_session, recipe, "recipe")
    assert "without its imatrix" in said
    assert plain_session.plan.pruned == {4}
    assert plain_session.imatrix is None


def test_layer_keys() -> None:
    assert layer_number(layer_key(17)) == 17
    assert layer_number("blk.1.attn_q.weight") is None
    assert spans([7, 2, 3, 4, 9]) == "2-4, 7, 9"


# --- rows


def test_layers_are_folded_at_first(session: Session) -> None:
    shown = rows_as_dict(visible_rows(session, View()))
    assert list(shown) == [
        "token_embd.weight",
        *(layer_key(layer) for layer in range(12)),
        "output.weight",
        "output_norm.weight",
    ]
    assert all(inside == [] for inside in shown.values())


def test_an_unfolded_layer_shows_its_tensors(session: Session) -> None:
    shown = rows_as_dict(visible_rows(session, View(unfolded=frozenset({3}))))
    assert shown[layer_key(2)] == []
    assert shown[layer_key(3)] == [tensor.name for tensor in session.model.layers[3].tensors]


def test_a_filter_leaves_only_what_matches(session: Session) -> None:
    found = parse_filter("ffn_down")
    assert found is not None
    view = View(filter=found, unfolded=unfold_matches(session, found))
    assert rows_as_dict(visible_rows(session, view)) == {
        layer_key(layer): [f"blk.{layer}.ffn_down.weight"] for layer in range(12)
    }


def test_order_by_cossim_never_ranks_layer_zero(session: Session) -> None:
    for descending in (True, False):
        rows = visible_rows(session, View(sort="cos", descending=descending))
        layers = [row.layer for row in rows if row.key.startswith("layer")]
        assert layers[-1] == 0
        values = [session.measurements.layers[layer].cossim for layer in layers[:-1] if layer is not None]
        assert values == sorted(values, reverse=descending)  # type: ignore[type-var]


def test_flat_order_ranks_tensors_across_layers(session: Session) -> None:
    found = parse_filter("ffn_down")
    rows = visible_rows(session, View(filter=found, flat=True, sort="cos", descending=False))
    assert len(rows) == 12
    assert rows[-1].key == "blk.0.ffn_down.weight"
    assert rows[0].metric("cos") == min(row.metric("cos") for row in rows[:-1])  # type: ignore[type-var]


# --- filters


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("ffn_", 48),
        ("!norm ffn_", 36),
        ("~ffdn", 12),
        ("size>2MB", 2),
        ("size>=393216B", 38),
        ("from=f32", 25),
        ("from!=f32", 86),
        ("layer=3", 9),
        ("layer<2 attn_", 10),
        ("cols=768", 12),
        (r"blk\.(1|2)\.attn_v", 2),
        ("cos>0.9", 50),
        ("layer.cos>0.7", 27),
        ("is:changed", 0),
        ("is:uncovered", 0),
        ("active>=100%", 85),
    ],
)
def test_filters(session: Session, text: str, count: int) -> None:
    found = parse_filter(text)
    assert found is not None
    assert len(visible_rows(session, View(filter=found, flat=True))) == count


def test_filters_see_the_plan(session: Session) -> None:
    session.set_file_type("Q4_K_M")
    session.toggle_prune([2])
    session.add_rule("attn_v=q8_0")

    def count(text: str) -> int:
        return len(visible_rows(session, View(filter=parse_filter(text), flat=True)))

    assert count("is:pruned") == 9
    assert count("type=q8_0") == 11
    assert count("is:rule") == 11
    assert count("is:changed") == 79


@pytest.mark.parametrize(
    "text", ["cos>much", "colour=red", "size>10XB", "is:nice", "(ffn", "type>Q4_K", "layer.size>1"]
)
def test_a_wrong_filter_says_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"known|number|regular|can only"):
        parse_filter(text)


def test_an_empty_filter_is_none() -> None:
    assert parse_filter("  ") is None


# --- commands


def test_commands(session: Session) -> None:
    plan = parse_command("attn_v=q6_k", session).plan
    assert [str(rule) for rule in plan.rules] == ["attn_v=q6_k"]
    plan = parse_command(r"\.(1[0-9]|2)\.ffn_down=q5_k", session).plan
    assert [str(rule) for rule in plan.rules] == [r"\.(1[0-9]|2)\.ffn_down=q5_k"]
    assert parse_command("prune 2,9-11", session).plan.pruned == {2, 9, 10, 11}
    assert parse_command("base q5_k_m", session).plan.file_type == "Q5_K_M"
    assert parse_command("q4_k_s", session).plan.file_type == "Q4_K_S"
    assert parse_command("--pure --output-tensor-type q8_0", session).plan.output_tensor_type == "Q8_0"
    session.toggle_prune([2, 3])
    assert parse_command("restore 3", session).plan.pruned == {2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "attn_v=q9_k",
        "=q4_k",
        "prune 12",
        "prune x",
        "prune 0-11",
        "base q9",
        "--imatrix f",
        "--prune-layers 40",
        "--nonsense",
        '--pure "',
    ],
)
def test_wrong_commands_are_one_line(session: Session, text: str) -> None:
    with pytest.raises(SurgeonError) as raised:
        parse_command(text, session)
    assert "\n" not in str(raised.value)


def test_options_can_be_taken_back(session: Session) -> None:
    command = "--pure --i-know --output-tensor-type q8_0 --exclude-weights attn --override-kv a.b=int:4"
    session.change(parse_command(command, session).plan, command)
    words = option_words(session.plan)
    assert words == [
        "--pure",
        "--i-know",
        "--output-tensor-type q8_0",
        "--exclude-weights attn",
        "--override-kv a.b=int:4",
    ]
    plan = session.plan
    for word in words:
        plan = without_option(plan, word)
    assert option_words(plan) == []
