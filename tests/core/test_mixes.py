"""The file types and the rules of their mixes that no recorded model shape reaches."""

from __future__ import annotations

import pytest

from surgeon.errors import SurgeonError
from surgeon.model.categories import Category, category, dimensions, kept_because
from surgeon.plan.file_types import FILE_TYPES, find_file_type, parse_file_type
from surgeon.resolve.mixes import Mix, MixTensor, choose, use_more_bits
from surgeon_kernels.formats import FORMATS


def mix(name: str, **changes: object) -> Mix:
    facts: dict[str, object] = {
        "architecture": "llama",
        "n_layer": 32,
        "n_expert": 0,
        "n_gqa": 1,
        "is_70b": False,
        "n_attention_wv": 32,
        "tied": False,
        "has_imatrix": False,
    }
    return Mix(FILE_TYPES[name], **(facts | changes))  # type: ignore[arg-type]


def chosen(mix: Mix, kind: Category, index: int = 0, columns: int = 4096, matrices: int = 1, layer: int = 0) -> str:
    subject = MixTensor(f"blk.{layer}.{kind}.weight", kind, columns, matrices, layer)
    choice = choose(mix, subject, index, FORMATS[mix.base].block)
    assert choice.why
    return choice.type


def test_every_type_has_a_base_that_exists() -> None:
    assert len(FILE_TYPES) == 39
    assert {kind.base for kind in FILE_TYPES.values()} <= {*FORMATS, None}
    assert [kind.name for kind in FILE_TYPES.values() if kind.base is None] == ["COPY"]


def test_numbers_and_names() -> None:
    assert find_file_type("0") is FILE_TYPES["F32"]
    assert find_file_type(" 7xyz") is FILE_TYPES["Q8_0"]
    assert find_file_type("iq3_m") is FILE_TYPES["IQ3_M"]
    assert find_file_type("-1") is None
    assert find_file_type("") is None
    assert find_file_type("33") is None  # retired
    with pytest.raises(SurgeonError, match="did you mean Q4_K_M"):
        parse_file_type("Q4_KM")


def test_more_bits_at_both_ends_and_every_third_between() -> None:
    assert [layer for layer in range(32) if use_more_bits(layer, 32)] == [
        0,
        1,
        2,
        3,
        6,
        9,
        12,
        15,
        18,
        21,
        24,
        27,
        *range(28, 32),
    ]
    assert [layer for layer in range(12) if use_more_bits(layer, 12)] == [0, 3, 6, 9, 10, 11]
    assert [layer for layer in range(3) if use_more_bits(layer, 3)] == [2]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (mix("Q4_K_M", n_expert=8), "Q8_0"),
        (mix("Q3_K_S", is_70b=True), "Q5_K"),
        (mix("Q4_K_S", is_70b=True), "Q5_K"),
        (mix("Q4_0", is_70b=True), "Q4_0"),
        (mix("IQ3_XXS"), "IQ3_S"),
        (mix("IQ3_XXS", has_imatrix=True), "IQ3_XXS"),
        (mix("IQ2_XXS", n_expert=4), "Q4_K"),
        (mix("IQ2_M"), "IQ3_S"),
        (mix("IQ4_XS", n_gqa=4), "Q5_K"),
        (mix("IQ4_XS", n_gqa=3), "IQ4_XS"),
    ],
)
def test_attention_v(mixture: Mix, expected: str) -> None:
    assert chosen(mixture, Category.ATTENTION_V, index=5) == expected
    assert chosen(mixture, Category.ATTENTION_QKV, index=5) == expected


@pytest.mark.parametrize(
    ("mixture", "kind", "expected"),
    [
        (mix("Q4_K_M", n_expert=8), Category.ATTENTION_K, "Q8_0"),
        (mix("IQ2_XS", n_expert=8), Category.ATTENTION_K, "Q4_K"),
        (mix("IQ3_XS"), Category.ATTENTION_K, "IQ3_XXS"),
        (mix("IQ3_XXS"), Category.ATTENTION_Q, "IQ2_S"),
        (mix("IQ3_XS", n_expert=8), Category.ATTENTION_Q, "IQ3_XXS"),
        (mix("Q3_K_S", n_expert=8), Category.ATTENTION_OUTPUT, "Q5_K"),
        (mix("Q5_K_S", n_expert=8), Category.ATTENTION_OUTPUT, "Q5_K"),
        (mix("IQ1_S", n_expert=8), Category.ATTENTION_OUTPUT, "Q5_K"),
        (mix("IQ1_S"), Category.ATTENTION_OUTPUT, "IQ2_XXS"),
        (mix("Q3_K_L", architecture="falcon"), Category.ATTENTION_OUTPUT, "Q4_K"),
        (mix("Q2_K", architecture="falcon"), Category.ATTENTION_OUTPUT, "Q2_K"),
        (mix("Q2_K"), Category.ATTENTION_OUTPUT, "Q3_K"),
        (mix("Q4_K_M"), Category.OTHER, "Q4_K"),
        (mix("TQ1_0"), Category.TOKEN_EMBD, "Q4_K"),
        (mix("IQ3_XXS"), Category.TOKEN_EMBD, "IQ3_S"),
        (mix("IQ1_M"), Category.TOKEN_EMBD, "Q2_K"),
        (mix("Q4_K_M", tied=True), Category.TOKEN_EMBD, "Q6_K"),
        (mix("Q4_K_M", tied=True, output_type="Q8_0"), Category.TOKEN_EMBD, "Q8_0"),
        (mix("Q8_0"), Category.OUTPUT, "Q8_0"),
        (mix("IQ2_M"), Category.OUTPUT, "Q5_K"),
        (mix("Q4_0", architecture="falcon"), Category.OUTPUT, "Q8_0"),
    ],
)
def test_other_kinds(mixture: Mix, kind: Category, expected: str) -> None:
    assert chosen(mixture, kind, index=20, layer=20) == expected


def test_output_whose_rows_are_no_whole_blocks() -> None:
    assert chosen(mix("Q4_K_M"), Category.OUTPUT, columns=288) == "Q8_0"
    assert chosen(mix("Q4_0"), Category.OUTPUT, columns=288) == "Q6_K"


@pytest.mark.parametrize(
    ("mixture", "runs"),
    [
        (mix("Q4_K_M", architecture="falcon"), {"Q6_K": 2, "Q5_K": 14, "Q4_K": 16}),
        (mix("Q3_K_M", architecture="falcon"), {"Q5_K": 2, "Q4_K": 14, "Q3_K": 16}),
        (mix("Q3_K_M"), {"Q5_K": 2, "Q4_K": 30}),
        (mix("Q2_K_S"), {"Q4_K": 4, "Q2_K": 28}),
        (mix("IQ3_XXS"), {"Q4_K": 4, "Q3_K": 28}),
        (mix("IQ3_XXS", has_imatrix=True), {"IQ3_XXS": 32}),
        (mix("IQ3_M", n_expert=8), {"Q4_K": 16, "IQ3_S": 16}),
        (mix("Q4_K_S", architecture="falcon"), {"Q4_K": 32}),
        (mix("Q5_0", has_imatrix=True), {"Q5_1": 4, "Q5_0": 28}),
        (mix("IQ2_S"), {"IQ3_S": 4, "IQ2_XS": 28}),
    ],
)
def test_ffn_down_over_the_layers(mixture: Mix, runs: dict[str, int]) -> None:
    types = [chosen(mixture, Category.FFN_DOWN, index=layer, layer=layer) for layer in range(32)]
    assert {kind: types.count(kind) for kind in types} == runs


def test_experts_count_by_the_number_in_the_name() -> None:
    experts = mix("Q4_K_M", n_expert=4)
    assert chosen(experts, Category.FFN_DOWN, index=31, layer=4) == "Q4_K"
    assert chosen(experts, Category.FFN_DOWN, index=4, layer=31) == "Q6_K"
    with pytest.raises(SurgeonError, match="outside the 32 layers"):
        chosen(experts, Category.FFN_UP, layer=32)
    with pytest.raises(SurgeonError, match="needs `blk"):
        choose(experts, MixTensor("ffn_up.weight", Category.FFN_UP, 256, 1, None), 0, 256)


def test_mxfp4_is_for_experts() -> None:
    assert chosen(mix("MXFP4_MOE"), Category.FFN_UP, matrices=32) == "MXFP4"
    assert chosen(mix("MXFP4_MOE"), Category.FFN_UP) == "Q8_0"
    assert chosen(mix("MXFP4_MOE"), Category.OUTPUT) == "Q8_0"
    odd = mix("MXFP4_MOE", architecture="bailingmoe3")
    assert chosen(odd, Category.OTHER, matrices=32) == "Q8_0"
    assert chosen(odd, Category.FFN_DOWN, matrices=32) == "MXFP4"


def test_glm5_next_keeps_its_low_rank_queries() -> None:
    subject = MixTensor("blk.0.attn_q_a.weight", Category.OTHER, 4096, 1, 0)
    assert choose(mix("Q4_K_M", architecture="glm5-next"), subject, 0, 256).type == "Q8_0"
    assert choose(mix("Q4_K_M"), subject, 0, 256).type == "Q4_K"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("output.weight", Category.OUTPUT),
        ("blk.0.attn_output.weight", Category.ATTENTION_OUTPUT),
        ("per_layer_token_embd.weight", Category.TOKEN_EMBD),
        ("dec.blk.3.cross_attn_v.weight", Category.ATTENTION_V),
        ("dec.blk.3.attn_o.weight", Category.OTHER),
        ("blk.3.attn_qkv.weight", Category.ATTENTION_QKV),
        ("blk.3.attn_kv_b.weight", Category.ATTENTION_KV_B),
        ("blk.3.ffn_gate_up_exps.weight", Category.FFN_GATE),
        ("blk.3.ffn_up.7.weight", Category.FFN_UP),
        ("blk.3.attn_q_a.weight", Category.OTHER),
    ],
)
def test_categories(name: str, found: Category) -> None:
    assert category(name) is found


@pytest.mark.parametrize(
    ("name", "ne", "why"),
    [
        ("blk.0.attn_norm.weight", (4096,), "norm"),
        ("blk.0.ssm_norm.weight", (4096, 8), "norm"),
        ("blk.0.attn_q.bias", (4096,), "bias"),
        ("rope_freqs.weight", (64,), "1-D"),
        ("x.weight", (4096, 1, 1), "1-D"),
        ("blk.0.ffn_gate_inp.weight", (4096, 8), "router"),
        ("blk.0.time_mix_w1.weight", (64, 64), "time_mix_w1"),
        ("position_embd.weight", (64, 64), "position embedding"),
        ("v.blk.0.position_embd.weight", (64, 64), "position embedding"),
        ("blk.0.ssm_a", (16, 64), "no weight"),
        ("blk.0.ffn_up.weight", (64, 64), None),
        ("blk.0.attn_k_b.weight", (64, 64, 4), None),
    ],
)
def test_what_is_never_quantized(name: str, ne: tuple[int, ...], why: str | None) -> None:
    assert kept_because(name, ne, "llama") == why


def test_glm5_next_keeps_more() -> None:
    assert kept_because("blk.0.attn_k_b.weight", (64, 64, 4), "glm5-next") == "kept by glm5-next"


def test_dimensions_ignore_trailing_ones() -> None:
    assert [dimensions(ne) for ne in ((1,), (5, 1, 1), (1, 5), (5, 1, 2, 1))] == [1, 1, 2, 3]
