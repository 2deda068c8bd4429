"""What is true of a model's tensors whatever the plan says, worked out once per model.

The screen resolves the plan on every keystroke; with thousands of tensors only what the plan decides may be done then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from surgeon.anatomy import TensorSlice
from surgeon.model.categories import ATTENTION_V_LIKE, Category, category, in_tower, kept_because
from surgeon.model.model import Model, Tensor
from surgeon.plan.patterns import SlowPatternError
from surgeon.plan.regex_ecma import compile_pattern
from surgeon.resolve.layer_numbers import Numbering, number_layers
from surgeon_kernels.formats import FORMATS


class TensorFacts(NamedTuple):
    """columns: row length; rows: of all matrices; kept: why it is never quantized, or None; slice, scale: pruning's;
    healed: the refitted tensor that takes its place, with how much it helps in words.

    A named tuple for the reason that `TensorOp` is one.
    """

    tensor: Tensor
    name: str
    category: Category
    kept: str | None
    columns: int
    rows: int
    matrices: int
    from_type: str
    in_tower: bool = False
    slice: TensorSlice | None = None
    scale: float | None = None
    healed: tuple[Tensor, str] | None = None

    def nbytes_as(self, type_name: str) -> int:
        """Bytes of the tensor in another type; its blocks must fill the rows."""
        return self.rows * FORMATS[type_name].row_bytes(self.columns)


@dataclass(slots=True)
class ModelFacts:
    """by_layer: in llama-quantize's output order; by_offset: that of `--keep-split`; names, types: as by_layer.

    attention_v, outputs: the names a mix counts; matches: names a pattern finds, for each pattern asked for.
    """

    by_layer: tuple[TensorFacts, ...]
    by_offset: tuple[TensorFacts, ...]
    by_name: dict[str, TensorFacts]
    names: tuple[str, ...]
    types: tuple[str, ...]
    attention_v: tuple[str, ...]
    outputs: tuple[str, ...]
    numbered: list[tuple[str, int | None]]
    unpruned: Numbering
    matches: dict[str, frozenset[str]] = field(default_factory=dict)
    slow: dict[str, SlowPatternError] = field(default_factory=dict)

    @property
    def any_quantizable(self) -> bool:
        """Whether there is a tensor whose type a plan may choose."""
        return any(one.kept is None for one in self.by_layer)

    def matching(self, pattern: str) -> frozenset[str]:
        """The names (of the input) in which the pattern is found; raises SurgeonError for an invalid pattern."""
        if pattern in self.slow:  # so that it is waited for but once
            raise self.slow[pattern]
        if pattern not in self.matches:
            compiled = compile_pattern(pattern)
            if len(self.slow) >= _MOST_SLOW and not compiled.is_quick:
                raise SlowPatternError(f"pattern {pattern!r:.80} is not tried: {_MOST_SLOW} others took too long")
            try:
                self.matches[pattern] = frozenset(filter(compiled.search, self.names))
            except SlowPatternError as error:
                self.slow[pattern] = error
                raise
        return self.matches[pattern]


def matching(pattern: str, names: tuple[str, ...]) -> frozenset[str]:
    search = compile_pattern(pattern).search
    return frozenset(name for name in names if search(name))


_MOST_SLOW = 3  # a recipe may hold thousands of such patterns, and each takes a second
_known: WeakKeyDictionary[Model, ModelFacts] = WeakKeyDictionary()


def facts_of(model: Model) -> ModelFacts:
    if model not in _known:
        _known[model] = _work_out(model)
    return _known[model]


def _work_out(model: Model) -> ModelFacts:
    facts = [_facts(tensor, model.architecture) for tensor in model.tensors]
    by_layer = tuple(sorted(facts, key=lambda one: (_layer(one), one.name.encode())))
    by_offset = tuple(sorted(facts, key=lambda one: (one.tensor.info.shard, one.tensor.info.offset)))
    numbered = [(one.name, one.tensor.layer) for one in by_layer]
    return ModelFacts(
        by_layer=by_layer,
        by_offset=by_offset,
        by_name={one.name: one for one in by_layer},
        names=tuple(one.name for one in by_layer),
        types=tuple(one.from_type for one in by_layer),
        attention_v=tuple(one.name for one in by_layer if one.category in ATTENTION_V_LIKE),
        outputs=tuple(one.name for one in by_layer if one.category is Category.OUTPUT),
        numbered=numbered,
        unpruned=number_layers(numbered, frozenset()),
    )


def _layer(facts: TensorFacts) -> int:
    return -1 if facts.tensor.layer is None else facts.tensor.layer


def _facts(tensor: Tensor, architecture: str) -> TensorFacts:
    ne = tensor.ne
    return TensorFacts(
        tensor=tensor,
        name=tensor.name,
        category=category(tensor.name),
        kept=kept_because(tensor.name, ne, architecture),
        columns=ne[0],
        rows=tensor.n_elements // ne[0] if ne[0] else 0,
        matrices=ne[2] if len(ne) > 2 else 1,
        from_type=tensor.type_name,
        in_tower=in_tower(tensor.name, architecture),
    )
