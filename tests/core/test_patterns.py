"""Patterns of strangers: the answers of ECMAScript, and none takes long."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path

import pytest
from gguf_builder import toy_llama

from surgeon.errors import SurgeonError
from surgeon.model.model import load_model
from surgeon.plan import patterns
from surgeon.plan.patterns import Pattern, SlowPatternError, is_simple
from surgeon.plan.plan import Plan, TypeRule
from surgeon.plan.regex_ecma import compile_pattern
from surgeon.resolve.resolve import resolve
from surgeon.session.filters import parse_filter

NAMES = [f"blk.{layer}.{part}.weight" for layer in range(40) for part in ("attn_q", "ffn_down", "ffn_gate_exps")]
SLOW = [
    r"([a-z0-9._]+)+@",
    r"(a|a)*(a|a)*[^x]*[^x]*[^x]*[^x]*[^x]*@",
    r"(.*)*(.*)*(.*)*(.*)*\1@",
    r"(?=(.*)*@)(.*)*x",
    r"((((.*)*)*)*)*@",
    r"^(.+.+)+$@",
    "(x?){500}" * 3 + "@",
    "(a|b|c|d|ab)*" * 12 + "@",
    r"(.?){0,1000}(.?){0,1000}(.?){0,1000}@",
]


@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_takes_much_longer_than_its_time(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    began = time.process_time()
    compiled = compile_pattern(pattern)
    assert not compiled.is_quick
    with contextlib.suppress(SlowPatternError):
        assert not any(compiled.search("a" * 127 + name) for name in NAMES)
    assert time.process_time() - began < 20  # for ever, without the clock


def test_a_pattern_that_had_its_time_says_so_and_goes_on_saying_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_pattern(r"(.*)(.*)x\1\2")
    monkeypatch.setattr(compiled, "_left", 1e-9)
    for _ in range(2):
        with pytest.raises(SlowPatternError, match="put no repeat inside a repeat"):
            compiled.search("a" * 127)


@pytest.mark.parametrize(
    ("pattern", "simple"),
    [
        ("ffn_down", True),
        (r"blk\.(1|2|30)\..*down", True),
        (r"^blk\.[0-9]+\.ffn_(up|gate)\.weight\Z", True),
        ("a*b*", False),
        ("(a)*", False),
        ("(a|a)" * 9, False),
        (r"(a)\1", False),
        ("a?" * 3, False),
    ],
)
def test_what_goes_to_the_quick_matcher(pattern: str, simple: bool) -> None:
    assert is_simple(pattern) is simple


def test_both_matchers_give_the_same_answers() -> None:
    """Random patterns; `re` is what all patterns went to before, and is right where it ends."""
    rng = random.Random(20)
    pieces = r"a b ffn . \. [ab] [^a] [a-c0-9_] \d \w \b ^ $ { } {e<=1} {i} {,2} {2} {1,3} (?: ( (?= (?! ) ) ) | * + ?"
    pieces = [*pieces.split(), r"\1", r"\x61", "[[:alpha:]]", "[a&&b]", "[a--b]", "[a||b]", "[[a]", "[]", "[^]", r"\0"]
    compared = 0
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 10)))
        try:
            quick = compile_pattern(text)._compiled
        except SurgeonError:
            continue
        clocked = patterns._clocked(quick.pattern, re.ASCII)
        for name in ("blk.0.ffn_down.weight", "a", "", "aab", "ab.ba", "b-a_1", "a{e<=1}", "é", "a{i}"):
            assert (clocked.search(name) is None) == (quick.search(name) is None), (text, name)
        compared += 1
    assert compared > 300


BEYOND = {
    "nested": "(" * 6000 + ")" * 6000,
    "long": "a" * 30_000,
    "repeated": "(?:" * 3000 + "a" + ")*" * 3000,
    "open": "[" * 20_000,
}


@pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND)
def test_patterns_beyond_measure_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SurgeonError) as error:
        compile_pattern(text)
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r".+"):
        parse_filter(text[:19_000] + "(")


def test_a_recipe_full_of_slow_patterns_costs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []

    def slow(self: Pattern, name: str) -> bool:
        searched.append(self._shown)
        raise SlowPatternError("slow")

    monkeypatch.setattr(Pattern, "_searched", slow)
    model = load_model(toy_llama(tmp_path / "m.gguf"))
    plan = Plan(file_type="Q8_0", rules=tuple(TypeRule(f"(x{n}*)*@", "Q8_0") for n in range(50)))
    for _ in range(3):
        assert "slow" in resolve(model, plan).errors[0].text
    assert len(searched) == 1
