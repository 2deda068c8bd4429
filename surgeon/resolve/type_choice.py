"""The type each tensor shall have: what was set by hand, then options, rules and mix, and last the shape fallback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from surgeon.errors import SurgeonError
from surgeon.model.categories import OUTPUT, TOKEN_EMBEDDINGS, Category
from surgeon.plan.plan import Plan, TypeRule
from surgeon.resolve.mixes import COUNTER, Mix, MixTensor, choose
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon.resolve.tensor_op import Cause
from surgeon_kernels.formats import FORMATS


class UnfitError(SurgeonError):
    """A row that no replacement fits."""


class TypeWish(NamedTuple):
    """type: None to copy; dedicated: by an option that in llama-quantize has no shape fallback; fell_back: it did."""

    type: str | None
    why: str
    cause: Cause
    rule: TypeRule | None = None
    dedicated: bool = False
    fell_back: bool = False


COPIED = TypeWish(None, "copied: COPY", Cause.BASE)
Asked = tuple[object, ...]


@lru_cache(8)
def chosen_by(mix: Mix) -> dict[Asked, TypeWish]:
    """What `mix` chose so far; what was asked -> its answer."""
    return {}


@dataclass(slots=True)
class Chooser:
    """Chooses type after type in output order, for tensors that may be quantized; the mixes count those of a kind.

    mix: None when there is nothing to count (COPY, F16 …, `--pure`); rules: winning rule of each name; chosen: what the
    mix chose so far (`chosen_by`); reasons: of those in `types` that were worked out.
    """

    plan: Plan
    base: str | None
    base_quantized: bool
    mix: Mix | None
    rules: dict[str, TypeRule]
    types: dict[str, str]
    chosen: dict[Asked, TypeWish]
    reasons: dict[str, str]
    counters: dict[str, int] = field(default_factory=dict)

    def wanted(self, facts: TensorFacts, name: str, layer: int | None, rule_name: str) -> TypeWish:
        """name, layer: in the output; rule_name: the name rules are matched with. Raises SurgeonError."""
        explicit = self._explicit(facts, rule_name)
        if self.mix is None:
            return TypeWish(self.base, self._base_reason, Cause.BASE) if explicit is None else explicit
        if facts.in_tower and not self.plan.compat:  # llama-quantize counts a tower's layers among those of the text
            beside = TypeWish(self.base, f"{self._base_reason}: not the text model's", Cause.BASE)
            return beside if explicit is None else explicit
        counter = COUNTER.get(facts.category)
        index = self.counters.get(counter, 0) if counter else 0
        # llama-quantize counts only what the mix decides, so that one override shifts the choice for later tensors.
        if counter and not (explicit is not None and self.plan.compat):
            self.counters[counter] = index + 1
        return self._mixed(self.mix, facts, name, layer, index) if explicit is None else explicit

    @property
    def _base_reason(self) -> str:
        return f"base type of {self.plan.file_type}{', --pure' if self.plan.pure else ''}"

    def _mixed(self, mix: Mix, facts: TensorFacts, name: str, layer: int | None, index: int) -> TypeWish:
        """The mix's choice, looked up when the same mix was asked the same before, for this plan or an earlier one."""
        key: Asked = (facts.category, index, facts.columns, facts.matrices)
        if mix.reads_names:
            key += (name, layer)
        known = self.chosen.get(key)
        if known is None:
            subject = MixTensor(name, facts.category, facts.columns, facts.matrices, layer)
            known = self.chosen[key] = TypeWish(*choose(mix, subject, index, FORMATS[mix.base].block), Cause.MIX)
        return known

    def _explicit(self, facts: TensorFacts, rule_name: str) -> TypeWish | None:
        plan, name = self.plan, facts.name
        by_hand = self.types.get(name)
        if by_hand is not None:
            fitted_because = self.reasons.get(name)
            if fitted_because is not None:
                return TypeWish(by_hand, fitted_because, Cause.FIT)
            return TypeWish(by_hand, "set by hand", Cause.HAND)
        if self.base is None:
            return COPIED
        if plan.leave_output_tensor and name == OUTPUT:
            return TypeWish(None, "copied: --leave-output-tensor", Cause.OPTION)
        rule = self.rules.get(rule_name) if self.base_quantized else None
        if name in TOKEN_EMBEDDINGS and plan.token_embedding_type is not None:
            if rule is not None and name == "per_layer_token_embd.weight":
                return _ruled(rule)
            return TypeWish(plan.token_embedding_type, "--token-embedding-type", Cause.OPTION, dedicated=True)
        if facts.category is Category.OUTPUT and plan.output_tensor_type is not None:
            return TypeWish(plan.output_tensor_type, "--output-tensor-type", Cause.OPTION, dedicated=True)
        return None if rule is None else _ruled(rule)


def _ruled(rule: TypeRule) -> TypeWish:
    return TypeWish(rule.type, f"rule {rule}", Cause.RULE, rule)


def fitted(wanted: TypeWish, columns: int, *, fallback: bool) -> TypeWish:
    """`wanted` itself when whole blocks fill a row, else its replacement; raises UnfitError when there is none."""
    if wanted.type is None or columns % FORMATS[wanted.type].block == 0:
        return wanted
    block = FORMATS[wanted.type].block
    reason = f"row length {columns} is not a multiple of {block}"
    replacement = FORMATS[wanted.type].fallback or ("F16" if block <= 32 else None)
    if not fallback or replacement is None:
        remedy = (
            "choose another type for it" if replacement is None else "llama-quantize has no fallback for this option"
        )
        raise UnfitError(f"{reason}, and {wanted.type} has none to fall back to; {remedy}")
    if columns % FORMATS[replacement].block:
        replacement = "F16"
    why = f"{reason}: {wanted.type} falls back to {replacement}"
    return wanted._replace(type=replacement, why=why, fell_back=True)


def winning_rules(rules: Iterable[tuple[TypeRule, frozenset[str]]]) -> dict[str, TypeRule]:
    """Name -> the first rule that matches it."""
    winners: dict[str, TypeRule] = {}
    for rule, names in rules:
        for name in names:
            winners.setdefault(name, rule)
    return winners
