"""Edits of a plan, undo and redo, and the regular expressions of rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.errors import SurgeonError
from surgeon.plan.plan import (
    History,
    Plan,
    TypeRule,
    parse_rule,
    with_file_type,
    with_pruned,
    with_pruned_toggled,
    with_rule,
    with_rule_moved,
    with_types,
    without_pruned,
    without_rule,
)
from surgeon.plan.regex_ecma import compile_pattern


def test_rules_are_split_at_the_first_equals_sign() -> None:
    assert parse_rule("attn_v=q6_k") == TypeRule("attn_v", "Q6_K")
    assert str(parse_rule(r"\.(1[0-9]|2)\.ffn_down=Q5_K")) == r"\.(1[0-9]|2)\.ffn_down=q5_k"


@pytest.mark.parametrize("text", ["attn_v", "=q6_k", "attn_v=", ""])
def test_rules_need_both_parts(text: str) -> None:
    with pytest.raises(SurgeonError, match="PATTERN=TYPE"):
        parse_rule(text)


def test_a_mix_is_no_tensor_type() -> None:
    with pytest.raises(SurgeonError, match="q4_K_M is a mix, not a tensor type: its base type is Q4_K"):
        parse_rule("ffn_up=q4_K_M")
    with pytest.raises(SurgeonError, match="did you mean Q4_K"):
        parse_rule("ffn_up=q4_kk")


def test_a_rule_with_a_known_pattern_takes_its_place() -> None:
    plan = with_rule(with_rule(Plan(), TypeRule("a", "Q4_K")), TypeRule("b", "Q5_K"))
    plan = with_rule(plan, TypeRule("a", "Q8_0"))
    assert plan.rules == (TypeRule("a", "Q8_0"), TypeRule("b", "Q5_K"))
    assert with_rule_moved(plan, 1, 0).rules == plan.rules[::-1]
    assert without_rule(plan, 0).rules == (TypeRule("b", "Q5_K"),)


def test_types_set_by_hand_and_taken_back() -> None:
    plan = with_types(Plan(), ["y", "x"], "q6_k")
    assert plan.types == (("x", "Q6_K"), ("y", "Q6_K"))
    assert with_types(plan, ["x"], None).types == (("y", "Q6_K"),)


def test_pruning_and_toggling() -> None:
    plan = with_pruned(Plan(), [3, 1])
    assert plan.pruned == {1, 3}
    assert without_pruned(plan, [1]).pruned == {3}
    assert with_pruned_toggled(plan, [1, 2]).pruned == {1, 2, 3}
    assert with_pruned_toggled(plan, [1, 3]).pruned == frozenset()


def test_file_type_by_any_spelling() -> None:
    assert with_file_type(Plan(), "q4_k_m").file_type == "Q4_K_M"
    with pytest.raises(SurgeonError, match="unknown TYPE 'Q4_Z'"):
        with_file_type(Plan(), "Q4_Z")


def test_a_change_that_changes_nothing_leaves_no_state() -> None:
    history = History.starting(Plan())
    assert history.change(Plan(), "nothing") is history


@given(st.lists(st.sampled_from(["undo", "redo", *map(str, range(6))]), max_size=40))
def test_history_behaves_like_a_list_with_a_cursor(steps: list[str]) -> None:
    states, at = [Plan()], 0
    history = History.starting(Plan())
    for step in steps:
        if step == "undo":
            history, at = history.undo(), max(at - 1, 0)
        elif step == "redo":
            history, at = history.redo(), min(at + 1, len(states) - 1)
        else:
            plan = with_pruned_toggled(history.plan, [int(step)])
            history = history.change(plan, f"prune {step}")
            states = [*states[: at + 1], plan]
            at += 1
        assert history.plan == states[at]
        assert len(history.past) == at
        assert len(history.future) == len(states) - 1 - at


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        (r"\.(1[0-9]|2)\.ffn_down", "blk.12.ffn_down.weight", True),
        (r"\.(1[0-9]|2)\.ffn_down", "blk.22.ffn_down.weight", False),
        ("FFN_UP", "blk.1.ffn_up.weight", True),  # patterns are lower-cased
        (r"blk\.\D", "blk.1.ffn_up.weight", True),  # so \D becomes \d
        ("weight$", "blk.1.ffn_up.weight", True),
        ("weight$", "output.weight\n", False),
        ("[[:digit:]]+\\.attn", "blk.31.attn_q.weight", True),
        ("[^]ttn", "blk.31.attn_q.weight", True),
        ("[]", "output.weight", False),
        ("^attn", "blk.0.attn_v.weight", False),
        ("(?!blk)^.", "output.weight", True),
        ("a{1,2}ttn", "blk.0.attn_v.weight", True),
    ],
)
def test_patterns_search_as_std_regex_does(pattern: str, name: str, found: bool) -> None:
    assert bool(compile_pattern(pattern).search(name)) is found


@pytest.mark.parametrize("pattern", ["ffn_(up", "[a", "*a", "a++", "(?P<x>a)", "(?<=a)b", "[[:word:]]", "a\\", "[z-a]"])
def test_invalid_patterns_are_refused_by_name(pattern: str) -> None:
    with pytest.raises(SurgeonError, match="is not a regular expression"):
        compile_pattern(pattern)
