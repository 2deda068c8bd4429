"""What the choice respects, on the bundled model with costs made up for the purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fit_helpers import allocator, types_of

from surgeon.errors import SurgeonError, UsageError
from surgeon.fit.candidates import TypeSet
from surgeon.fit.cost_model import CostModel
from surgeon.fit.groups import band_count, groups_of
from surgeon.fit.target import read_size
from surgeon.model.model import Model
from surgeon.plan.plan import KVOverride, Plan, TypeRule
from surgeon.plan.recipe import Recipe, read_recipe, to_toml
from surgeon_kernels.formats import FORMATS


def test_the_file_has_the_size_asked_for_and_loses_less_than_the_mix(model: Model, costs: CostModel) -> None:
    fitted = allocator(model, costs)
    mix = next(mix for mix in fitted.mixes if mix.name == "Q3_K_M")
    fit = fitted.fit(mix.nbytes)
    assert 0.998 * mix.nbytes <= fit.resolution.total_bytes <= mix.nbytes
    assert fit.predicted.kld < mix.predicted.kld
    assert fit.predicted.error == pytest.approx(0.05 * fit.predicted.kld)
    assert not fit.resolution.errors
    best = fitted.mix_within(mix.nbytes)
    assert best is not None
    assert best.predicted.kld <= mix.predicted.kld


def test_what_matters_most_gets_the_most_bits(model: Model, costs: CostModel) -> None:
    types = types_of(allocator(model, costs).fit(6_000_000))
    others = [FORMATS[kind].bpw for name, kind in types.items() if name.startswith("blk.") and "norm" not in name]
    assert FORMATS[types["output.weight"]].bpw > max(others)


def test_more_bytes_never_cost_more(model: Model, costs: CostModel) -> None:
    fitted = allocator(model, costs)
    klds = [fitted.fit(nbytes).predicted.kld for nbytes in range(4_500_000, 12_000_000, 500_000)]
    assert klds == sorted(klds, reverse=True)


def test_reasons_are_in_the_resolution_and_survive_a_recipe(model: Model, costs: CostModel) -> None:
    fit = allocator(model, costs).fit(6_000_000)
    reasons = {op.source: op.reason for op in fit.resolution.kept if op.action == "convert"}
    assert all(reason.startswith("fit: +") for reason in reasons.values())
    again = read_recipe(to_toml(Recipe(fit.plan)), Path())
    assert again.plan == fit.plan


def test_rules_types_and_options_of_the_user_win(model: Model, costs: CostModel) -> None:
    plan = Plan(
        rules=(TypeRule("attn_v", "Q8_0"),), types=(("blk.0.ffn_up.weight", "Q2_K"),), token_embedding_type="Q5_K"
    )
    fit = allocator(model, costs, plan).fit(6_000_000)
    types = types_of(fit)
    assert {kind for name, kind in types.items() if "attn_v" in name} == {"Q8_0"}
    assert types["blk.0.ffn_up.weight"] == "Q2_K"
    assert types["token_embd.weight"] == "Q5_K"
    assert fit.resolution.total_bytes <= 6_000_000


def test_what_an_earlier_fit_chose_is_chosen_anew(model: Model, costs: CostModel) -> None:
    small = allocator(model, costs).fit(5_000_000)
    large = allocator(model, costs, small.plan).fit(9_000_000)
    assert large.resolution.total_bytes > 8_900_000
    by_hand = replace(small.plan, reasons=())
    with pytest.raises(UsageError, match="leave no tensor"):
        allocator(model, costs, by_hand)


def test_floors_and_kinds_that_share_a_type(model: Model, costs: CostModel) -> None:
    fit = allocator(
        model, costs, floors=(TypeRule("ffn_down", "Q5_K"),), same=(frozenset({"ffn_gate", "ffn_up"}),)
    ).fit(6_500_000)
    types = types_of(fit)
    for layer in range(12):
        assert types[f"blk.{layer}.ffn_gate.weight"] == types[f"blk.{layer}.ffn_up.weight"]
        assert FORMATS[types[f"blk.{layer}.ffn_down.weight"]].bpw >= 5.5


def test_only_the_types_asked_for_are_given(model: Model, costs: CostModel) -> None:
    fit = allocator(model, costs, types=TypeSet(("Q4_0", "Q8_0"))).fit(8_000_000)
    assert {op.to_type for op in fit.resolution.kept if op.action == "convert"} <= {"Q4_0", "Q8_0"}
    assert not set(TypeSet(fast=True).offered(groups_of(model)["output"][0])) & {"IQ2_XXS", "IQ3_S"}


def test_sizes_that_cannot_be_had_name_the_nearest(model: Model, costs: CostModel) -> None:
    fitted = allocator(model, costs)
    with pytest.raises(UsageError, match=r"--size: 1\.00 MB cannot be had; the smallest is 3\.95 MB"):
        fitted.fit(1_000_000)
    with pytest.raises(UsageError, match=r"--size: 1\.00 GB is more than the model has; the largest is 23\.2 MB"):
        fitted.fit(1_000_000_000)
    assert fitted.fit(fitted.least).resolution.total_bytes == fitted.least
    assert fitted.fit(fitted.most).resolution.data_bytes == model.nbytes


def test_bits_per_weight_become_bytes(model: Model, costs: CostModel) -> None:
    fitted = allocator(model, costs)
    fit = fitted.fit(fitted.bytes_at(4.25))
    assert 4.24 < fit.resolution.bpw <= 4.25


def test_a_pruning_plan_is_refused(model: Model, costs: CostModel) -> None:
    with pytest.raises(SurgeonError, match="write the pruned model first"):
        allocator(model, costs, Plan(pruned=frozenset({3})))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(compat=True), "leave out --compat"),
        (Plan(exclude_weights=("ffn_down",)), "leave out --include-weights and --exclude-weights"),
        (Plan(override_kv=(KVOverride("llama.context_length", "int", 9),)), "change llama.context_length in a COPY"),
        (Plan(deleted_keys=("llama.rope.freq_base",)), "change llama.rope.freq_base in a COPY"),
    ],
)
def test_plans_without_measured_costs_are_refused(model: Model, costs: CostModel, plan: Plan, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        allocator(model, costs, plan)


def test_a_name_or_a_chat_template_does_not_hinder_a_fit(model: Model, costs: CostModel) -> None:
    edited = Plan(override_kv=(KVOverride("general.name", "str", "x"),), deleted_keys=("tokenizer.chat_template",))
    plain, other = (allocator(model, costs, plan) for plan in (Plan(), edited))
    assert [mix.name for mix in other.mixes] == [mix.name for mix in plain.mixes]
    fit = other.fit(6_000_000)
    assert fit.predicted == plain.fit(6_000_000).predicted
    assert dict(fit.resolution.metadata)["general.name"].decode() == "x"


def test_groups_are_kinds_by_depth(model: Model) -> None:
    groups = groups_of(model)
    assert {"token_embd", "output", "ffn_down@0", "ffn_down@1", "ffn_down@2"} <= set(groups)
    assert [facts.tensor.layer for facts in groups["ffn_down@1"]] == [4, 5, 6, 7]
    assert sum(map(len, groups.values())) == 12 * 7 + 2
    assert [band_count(n) for n in (1, 6, 12, 32, 80)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4.2GB", 4_200_000_000), ("24GiB", 24 << 30), ("3900M", 3_900_000_000), ("123", 123)]
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert read_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1G", "4,2GB", "4.2 parsecs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        read_size(text)
