"""The file types of llama-quantize (`Q4_K_M` …) and the tensor type each of them gives every tensor, with its reason.

A mix starts from a base type and moves some tensors up or down, by category, layer, number of experts, heads and by
whether there is an importance matrix. `choose` states the rules branch by branch in the order they are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from surgeon.errors import SurgeonError
from surgeon.model.architectures import Quirks, quirks_of
from surgeon.model.categories import ATTENTION_V_LIKE, Category
from surgeon.plan.file_types import FileType

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


class MixTensor(NamedTuple):
    """The tensor to be judged: columns: row length; matrices: ne[2]; layer: of a leading `blk.<n>.` in the output."""

    name: str
    category: Category
    columns: int
    matrices: int
    layer: int | None


@dataclass(frozen=True)
class Mix:
    """What the rules look at besides the tensor.

    n_layer: number of layers the rules count with; n_gqa: query heads per key-value head in layer 0;
    n_attention_wv: attn_v-like tensors kept; tied: no `output.weight`; output_type: `--output-tensor-type`.
    """

    file_type: FileType
    architecture: str
    n_layer: int
    n_expert: int
    n_gqa: int
    is_70b: bool
    n_attention_wv: int
    tied: bool
    has_imatrix: bool
    output_type: str | None = None

    @cached_property
    def name(self) -> str:
        return _ALIASES.get(self.file_type.name, self.file_type.name)

    @cached_property
    def base(self) -> str:
        assert self.file_type.base is not None, "COPY chooses no types"
        return self.file_type.base

    @cached_property
    def quirks(self) -> Quirks:
        return quirks_of(self.architecture)

    @cached_property
    def reads_names(self) -> bool:
        """Whether a choice may depend on a tensor's name and layer, and not only on its kind, order and shape."""
        return self.n_expert > 1 or bool(self.quirks.q8_0)


class Choice(NamedTuple):
    type: str
    why: str


# The categories whose rules count tensors; each has one counter.
COUNTER: dict[Category, str] = {
    **dict.fromkeys(ATTENTION_V_LIKE, "attention_wv"),
    Category.FFN_DOWN: "ffn_down",
    Category.FFN_GATE: "ffn_gate",
    Category.FFN_UP: "ffn_up",
}

_IQ2_FAMILY = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"})
_Rule = tuple[str, str] | None  # (type, why), or None for the base type


def use_more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def choose(mix: Mix, subject: MixTensor, index: int, block: int) -> Choice:
    """The type the mix gives `subject`, and why.

    index: how many tensors of the same counter came before; block: elements per block of the base type.
    Raises SurgeonError when a mixture of experts has a name without a usable layer number.
    """
    found = _kept_high(mix, subject)
    if found is None:
        if subject.category is Category.OUTPUT or (mix.tied and subject.category is Category.TOKEN_EMBD):
            found = _output(mix, subject, block)
        elif mix.name == "MXFP4_MOE":
            found = _mxfp4_moe(mix, subject)
        elif subject.category is Category.TOKEN_EMBD:
            found = _token_embedding(mix)
        elif mix.name in _IQ2_FAMILY:
            found = _iq2_family(mix, subject, index)
        else:
            rule = _RULES.get(subject.category)
            found = rule(mix, subject, index) if rule else None
    if found is None or found[0] == mix.base:
        return Choice(mix.base, f"base type of {mix.file_type.name}")
    return Choice(found[0], f"mix rule: {found[1]}")


def _kept_high(mix: Mix, subject: MixTensor) -> _Rule:
    return ("Q8_0", mix.quirks.q8_0_why) if any(part in subject.name for part in mix.quirks.q8_0) else None


def _output(mix: Mix, subject: MixTensor, block: int) -> _Rule:
    what = "output" if subject.category is Category.OUTPUT else "token_embd serves as output"
    if mix.output_type is not None:
        return mix.output_type, "--output-tensor-type, for a tied embedding"
    if mix.name == "MXFP4_MOE":
        return "Q8_0", what
    if mix.quirks.falcon_mix:
        return "Q8_0", f"{what} of falcon"
    if subject.columns % block:
        return "Q8_0", f"{what}, row length {subject.columns} is not a multiple of {block}"
    if mix.name in ("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"):
        return "Q5_K", what
    return ("Q6_K", what) if mix.base != "Q8_0" else None


def _mxfp4_moe(mix: Mix, subject: MixTensor) -> _Rule:
    experts = (Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN)
    if subject.matrices > 1 and (mix.architecture != "bailingmoe3" or subject.category in experts):
        return None
    return "Q8_0", "not an expert"


def _token_embedding(mix: Mix) -> _Rule:
    if mix.name in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
        return "Q2_K", "token_embd"
    if mix.name in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S", "token_embd"
    if mix.name in ("TQ1_0", "TQ2_0", "Q2_0"):
        return "Q4_K", "token_embd"
    return None


def _iq2_family(mix: Mix, subject: MixTensor, index: int) -> _Rule:
    larger = mix.name in ("IQ2_S", "IQ2_M")
    raised = "IQ3_S" if larger else "Q2_K"
    kind = subject.category
    if kind in ATTENTION_V_LIKE:
        if mix.n_gqa >= 4 or mix.n_expert >= 4:
            return "Q4_K", f"{kind}, {_sharing(mix)}"
        return raised, kind
    if kind is Category.ATTENTION_K and mix.n_expert == 8:
        return "Q4_K", "attn_k, 8 experts"
    if kind is Category.FFN_DOWN and index < mix.n_layer // 8:
        return raised, f"ffn_down, {_place(index, mix.n_layer)} (first eighth)"
    if kind is Category.ATTENTION_OUTPUT:
        if mix.n_expert == 8:
            return "Q5_K", "attn_output, 8 experts"
        if mix.name in ("IQ1_S", "IQ1_M"):
            return "IQ2_XXS", "attn_output"
        if larger:
            return "IQ3_S", "attn_output"
    return None


def _attention_v(mix: Mix, subject: MixTensor, index: int) -> _Rule:
    chosen = _attention_v_by_type(mix, subject.category, index)
    if mix.is_70b and (chosen[0] if chosen else mix.base) in ("Q3_K", "Q4_K"):
        chosen = "Q5_K", f"{subject.category} of a 70B model"
    if mix.n_expert == 8:
        chosen = "Q8_0", f"{subject.category}, 8 experts"
    return chosen


def _attention_v_by_type(mix: Mix, kind: str, index: int) -> _Rule:
    shared = mix.n_gqa >= 4
    place = _place(index, mix.n_attention_wv)
    if mix.name in ("Q4_K_M", "Q5_K_M"):
        return ("Q6_K", f"use_more_bits, {place}") if use_more_bits(index, mix.n_attention_wv) else None
    if mix.name == "Q3_K_M":
        return ("Q5_K", f"{kind}, {place} (first 2)") if index < 2 else ("Q4_K", kind)
    if mix.name == "Q4_K_S":
        return ("Q5_K", f"{kind}, {place} (first 4)") if index < 4 else None
    if mix.name in ("IQ3_M", "Q3_K_L"):
        return "Q4_K" if mix.name == "IQ3_M" else "Q5_K", kind
    if shared and mix.name in ("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"):
        return "Q4_K", f"{kind}, {_sharing(mix)}"
    if shared and mix.name in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K", f"{kind}, {_sharing(mix)}"
    if mix.name == "Q2_K":
        return "Q3_K", kind
    if mix.name == "IQ3_XXS" and not mix.has_imatrix:
        return "IQ3_S", f"{kind}, no imatrix"
    return None


def _attention_k(mix: Mix, subject: MixTensor, index: int) -> _Rule:
    if mix.n_expert == 8:
        return "Q8_0", "attn_k, 8 experts"
    return _attention_q(mix, subject, index)


def _attention_q(mix: Mix, subject: MixTensor, _index: int) -> _Rule:
    lowered = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(mix.name)
    return (lowered, subject.category) if lowered else None


def _ffn_down(mix: Mix, subject: MixTensor, index: int) -> _Rule:
    layer = _layer_of(mix, subject, index)
    more, early = use_more_bits(layer, mix.n_layer), layer < mix.n_layer // 8
    place = _place(layer, mix.n_layer)
    falcon = mix.quirks.falcon_mix
    more_why, early_why = f"use_more_bits, {place}", f"ffn_down, {place} (first eighth)"
    match mix.name:
        case "Q2_K":
            return "Q3_K", "ffn_down"
        case "Q2_K_S":
            return ("Q4_K", early_why) if early else None
        case "IQ3_XXS" if not mix.has_imatrix:
            return ("Q4_K", early_why) if early else ("Q3_K", "ffn_down, no imatrix")
        case "Q3_K_M":
            return _ffn_down_q3_k_m(mix, layer, falcon)
        case "IQ3_M" if early or (mix.n_expert == 8 and more):
            return "Q4_K", early_why if early else more_why
        case "Q3_K_L":
            return "Q4_K" if falcon else "Q5_K", "ffn_down"
        case "Q4_K_M":
            return _ffn_down_q4_k_m(mix, layer, falcon)
        case "IQ4_NL" | "IQ4_XS" if early and not mix.has_imatrix:
            return "Q5_K", f"{early_why}, no imatrix"
        case "Q5_K_M" if more:
            return "Q6_K", more_why
        case "Q4_K_S" if early and not falcon:
            return "Q5_K", early_why
        case "Q4_0" | "Q5_0" if early and mix.has_imatrix:
            return ("Q4_1" if mix.name == "Q4_0" else "Q5_1"), f"{early_why}, imatrix"
        case _:
            return None


def _ffn_down_q3_k_m(mix: Mix, layer: int, falcon: bool) -> _Rule:
    place = _place(layer, mix.n_layer)
    if layer < mix.n_layer // 16:
        return "Q5_K", f"ffn_down, {place} (first sixteenth)"
    if not falcon:
        return "Q4_K", "ffn_down"
    return ("Q4_K", f"use_more_bits, {place}") if use_more_bits(layer, mix.n_layer) else None


def _ffn_down_q4_k_m(mix: Mix, layer: int, falcon: bool) -> _Rule:
    place = _place(layer, mix.n_layer)
    if falcon and layer < mix.n_layer // 16:
        return "Q6_K", f"ffn_down, {place} (first sixteenth)"
    if use_more_bits(layer, mix.n_layer):
        return "Q5_K" if falcon else "Q6_K", f"use_more_bits, {place}"
    return None


_OUTPUT_8_EXPERTS = frozenset("Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS".split())
_OUTPUT_RAISED = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}


def _attention_output(mix: Mix, _subject: MixTensor, _index: int) -> _Rule:
    if mix.quirks.falcon_mix:
        return ("Q4_K", "attn_output of falcon") if mix.name == "Q3_K_L" else None
    if mix.n_expert == 8:
        return ("Q5_K", "attn_output, 8 experts") if mix.name in _OUTPUT_8_EXPERTS else None
    raised = _OUTPUT_RAISED.get(mix.name)
    return (raised, "attn_output") if raised else None


def _ffn_gate_up(mix: Mix, subject: MixTensor, index: int) -> _Rule:
    layer = _layer_of(mix, subject, index)
    if mix.name == "IQ3_XS" and mix.n_layer // 8 <= layer < 7 * mix.n_layer // 8:
        return "IQ3_XXS", f"{subject.category}, {_place(layer, mix.n_layer)} (middle)"
    return None


_RULES: dict[Category, Callable[[Mix, MixTensor, int], _Rule]] = {
    **dict.fromkeys(ATTENTION_V_LIKE, _attention_v),
    Category.ATTENTION_K: _attention_k,
    Category.ATTENTION_Q: _attention_q,
    Category.FFN_DOWN: _ffn_down,
    Category.ATTENTION_OUTPUT: _attention_output,
    Category.FFN_GATE: _ffn_gate_up,
    Category.FFN_UP: _ffn_gate_up,
}


def _layer_of(mix: Mix, subject: MixTensor, index: int) -> int:
    """Layer the feed-forward rules count with: with experts (several tensors a layer) the name's, else the order."""
    if mix.n_expert <= 1:
        return index
    if subject.layer is None:
        raise SurgeonError(f"{subject.name}: a model with experts needs `blk.<number>.` in front of this name")
    if not 0 <= subject.layer < mix.n_layer:
        raise SurgeonError(f"{subject.name}: layer {subject.layer} is outside the {mix.n_layer} layers of block_count")
    return subject.layer


def _place(layer: int, layers: int) -> str:
    return f"layer {layer} of {layers}"


def _sharing(mix: Mix) -> str:
    return f"{mix.n_gqa} heads share it" if mix.n_gqa >= 4 else f"{mix.n_expert} experts"
