"""The plan: what the user wants done to a model. Immutable, so that undo is a list of plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from surgeon.errors import SurgeonError


@dataclass(frozen=True, slots=True)
class TypeRule:
    """`--tensor-type PATTERN=TYPE`: ECMAScript regex searched in tensor names; the first matching rule wins."""

    pattern: str
    type: str

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.lower()}"


@dataclass(frozen=True, slots=True)
class KVOverride:
    """`--override-kv KEY=TYPE:VALUE`; kind is int, float, bool or str; auto: `--set KEY=VALUE`, of the key's type."""

    key: str
    kind: str
    value: int | float | bool | str

    def __str__(self) -> str:
        value = str(self.value).lower() if self.kind == "bool" else str(self.value)
        return f"{self.key}={self.kind}:{value}"


@dataclass(frozen=True, slots=True)
class Healing:
    """A heal file to take tensors from. id: of its content, as the file itself says."""

    file: str
    id: str


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output, apart from the model and the importance matrix.

    file_type: a TYPE of llama-quantize in its table's spelling (`Q4_K_M`); types: exact tensor name (of the input) ->
    tensor type, set by hand on the screen, before any rule; pruned: layer numbers of the input.
    reasons: tensor name -> why it has its type, for those of `types` that were not set by hand but worked out.
    pruned_experts: (layer, its pruned experts), both in the input's numbers, ascending, no layer without any.
    deleted_keys: metadata keys left out of the output.
    imatrix_file: the importance matrix as the user named it, stored as `quantize.imatrix.file` (None: its own path).
    know_risks: `--i-know`, prune an architecture although not everything about it could be checked.
    compat: reproduce llama-quantize's defects too. healing: refitted matrices that make up for the pruned layers.
    shrink: of second moments towards their diagonal, None: chosen for each input; feedback_rounds: of better scales and
    codes after the first. Both count only where there are second moments; moments_file: the file that has them.
    """

    file_type: str = "COPY"
    rules: tuple[TypeRule, ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    reasons: tuple[tuple[str, str], ...] = ()
    pruned: frozenset[int] = frozenset()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    override_kv: tuple[KVOverride, ...] = field(default=())
    pure: bool = False
    leave_output_tensor: bool = False
    allow_requantize: bool = False
    keep_split: bool = False
    hide_imatrix: bool = False
    compat: bool = False
    imatrix_file: str | None = None
    know_risks: bool = False
    # Not in repr: a plan without it keeps the hash it had.
    pruned_experts: tuple[tuple[int, tuple[int, ...]], ...] = field(default=(), repr=False)
    healing: Healing | None = field(default=None, repr=False)
    moments_file: str | None = field(default=None, repr=False)
    shrink: float | None = field(default=None, repr=False)
    feedback_rounds: int = field(default=1, repr=False)
    deleted_keys: tuple[str, ...] = field(default=(), repr=False)


_OF_TYPES = frozenset(
    "file_type rules types reasons output_tensor_type token_embedding_type pure leave_output_tensor allow_requantize "
    "keep_split hide_imatrix imatrix_file know_risks moments_file shrink feedback_rounds".split()
)


def changes_types_only(plan: Plan) -> bool:
    """Whether the output differs from the input only in the types of its tensors, whatever encodes them: no pruning."""
    others = [name for name in Plan.__dataclass_fields__ if name not in _OF_TYPES]
    return all(getattr(plan, name) == getattr(_UNCHANGED, name) for name in others)


_UNCHANGED = Plan()


def tensor_type(text: str) -> str:
    """The tensor type called `text` in any case, in the spelling of the format table (`Q6_K`).

    Raises SurgeonError, with the hint that a mix is not a tensor type where that is the mistake.
    """
    from surgeon.plan.file_types import FILE_TYPES
    from surgeon_kernels.formats import by_name

    try:
        return by_name(text).name
    except ValueError as error:
        mix = FILE_TYPES.get(text.upper())
        if mix is not None and mix.base is not None:
            raise SurgeonError(f"{text} is a mix, not a tensor type: its base type is {mix.base}") from None
        raise SurgeonError(str(error)) from None


def parse_rule(text: str) -> TypeRule:
    """`PATTERN=TYPE`, split at the first `=`; raises SurgeonError when a part is missing or the type unknown."""
    pattern, equals, type_name = text.partition("=")
    if not equals or not pattern or not type_name:
        raise SurgeonError(f"malformed tensor type {text!r}: write PATTERN=TYPE, for instance attn_v=q6_k")
    return TypeRule(pattern, tensor_type(type_name))


def with_file_type(plan: Plan, name: str) -> Plan:
    """The base file type changed, everything else kept."""
    from surgeon.plan.file_types import parse_file_type

    return replace(plan, file_type=parse_file_type(name).name)


def with_types(plan: Plan, names: Iterable[str], type_name: str | None) -> Plan:
    """The type of the tensors `names` set by hand, or left to rules and mix again with None."""
    types, reasons = dict(plan.types), dict(plan.reasons)
    for name in names:
        reasons.pop(name, None)
        if type_name is None:
            types.pop(name, None)
        else:
            types[name] = tensor_type(type_name)
    return replace(plan, types=tuple(sorted(types.items())), reasons=tuple(sorted(reasons.items())))


def with_fitted(plan: Plan, types: Mapping[str, str], reasons: Mapping[str, str]) -> Plan:
    """Types that were worked out, each with its reason, in place of those set before for the same tensors."""
    kept = {name: why for name, why in plan.reasons if name not in types}
    return replace(
        plan,
        types=tuple(sorted((dict(plan.types) | dict(types)).items())),
        reasons=tuple(sorted((kept | {name: reasons[name] for name in types}).items())),
    )


def with_rule(plan: Plan, rule: TypeRule) -> Plan:
    """A rule added after the others, or in the place of the one with the same pattern."""
    patterns = [known.pattern for known in plan.rules]
    if rule.pattern not in patterns:
        return replace(plan, rules=(*plan.rules, rule))
    place = patterns.index(rule.pattern)
    return replace(plan, rules=(*plan.rules[:place], rule, *plan.rules[place + 1 :]))


def without_rule(plan: Plan, index: int) -> Plan:
    return replace(plan, rules=plan.rules[:index] + plan.rules[index + 1 :])


def with_rule_moved(plan: Plan, index: int, to: int) -> Plan:
    """The rule at `index` moved to the place `to`: the first matching one wins."""
    rules = list(plan.rules)
    rules.insert(to, rules.pop(index))
    return replace(plan, rules=tuple(rules))


def with_pruned(plan: Plan, layers: Iterable[int]) -> Plan:
    return _pruning(plan, plan.pruned | frozenset(layers))


def with_only_pruned(plan: Plan, layers: Iterable[int]) -> Plan:
    """These layers pruned and no others."""
    return _pruning(plan, frozenset(layers))


def without_pruned(plan: Plan, layers: Iterable[int]) -> Plan:
    return _pruning(plan, plan.pruned - frozenset(layers))


def _pruning(plan: Plan, pruned: frozenset[int]) -> Plan:
    """Other layers pruned: what was healed made up for those before."""
    return plan if pruned == plan.pruned else replace(plan, pruned=pruned, healing=None)


def with_healing(plan: Plan, healing: Healing | None) -> Plan:
    return replace(plan, healing=healing)


def with_pruned_toggled(plan: Plan, layers: Iterable[int]) -> Plan:
    """All of `layers` pruned, or none of them when all were."""
    chosen = frozenset(layers)
    return without_pruned(plan, chosen) if chosen <= plan.pruned else with_pruned(plan, chosen)


def with_pruned_experts(plan: Plan, sets: Mapping[int, Iterable[int]]) -> Plan:
    """These experts pruned in these layers, and no others there; other layers stay as they are."""
    merged = {layer: frozenset(numbers) for layer, numbers in plan.pruned_experts}
    merged |= {layer: frozenset(numbers) for layer, numbers in sets.items()}
    return replace(plan, pruned_experts=_expert_sets(merged))


def with_experts_toggled(plan: Plan, sets: Mapping[int, Iterable[int]]) -> Plan:
    """All experts in `sets` pruned, or none of them when all were."""
    now = {layer: frozenset(numbers) for layer, numbers in plan.pruned_experts}
    chosen = {layer: frozenset(numbers) for layer, numbers in sets.items()}
    all_pruned = all(numbers <= now.get(layer, frozenset()) for layer, numbers in chosen.items())
    changed = {
        layer: now.get(layer, frozenset()) - numbers if all_pruned else now.get(layer, frozenset()) | numbers
        for layer, numbers in chosen.items()
    }
    return replace(plan, pruned_experts=_expert_sets(now | changed))


def _expert_sets(sets: Mapping[int, frozenset[int]]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    return tuple((layer, tuple(sorted(sets[layer]))) for layer in sorted(sets) if sets[layer])


def expert_sets_id(sets: Mapping[int, Iterable[int]]) -> str:
    """16 hex digits, the same for the same experts, however they were chosen."""
    import hashlib  # loads OpenSSL, and `--help` hashes nothing

    text = repr(sorted((layer, sorted(gone)) for layer, gone in sets.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_key(plan: Plan, override: KVOverride) -> Plan:
    """A metadata key set, in the place of what was decided about it before."""
    rest = tuple(known for known in plan.override_kv if known.key != override.key)
    deleted = tuple(key for key in plan.deleted_keys if key != override.key)
    return replace(plan, override_kv=(*rest, override), deleted_keys=deleted)


def without_key(plan: Plan, key: str) -> Plan:
    """A metadata key left out of the output. Raises SurgeonError for the one that no model can do without."""
    if key == "general.architecture":
        raise SurgeonError("general.architecture cannot be deleted: no program could load the model")
    rest = tuple(known for known in plan.override_kv if known.key != key)
    return replace(plan, override_kv=rest, deleted_keys=tuple(sorted({*plan.deleted_keys, key})))


def with_key_as_stored(plan: Plan, key: str) -> Plan:
    """A metadata key as the model has it."""
    rest = tuple(known for known in plan.override_kv if known.key != key)
    return replace(plan, override_kv=rest, deleted_keys=tuple(one for one in plan.deleted_keys if one != key))


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """How a plan is written; none of it changes a byte of the tensors.

    threads: 0 for one per core; max_buffer_bytes: of all threads together, None for the default; split_max_bytes: 0 for
    one file, else the most tensor data in a shard.
    """

    threads: int = 0
    max_buffer_bytes: int | None = None
    split_max_bytes: int = 0


DEFAULT_SETTINGS = WriteSettings()


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """A plan, how it is to be written, and what led to it ("prune 26, 29")."""

    plan: Plan
    label: str
    settings: WriteSettings = DEFAULT_SETTINGS


@dataclass(frozen=True, slots=True)
class History:
    """Undo and redo: every state is a whole plan, so going back can never be half done."""

    present: HistoryStep
    past: tuple[HistoryStep, ...] = ()
    future: tuple[HistoryStep, ...] = ()

    @classmethod
    def starting(cls, plan: Plan, settings: WriteSettings = DEFAULT_SETTINGS) -> History:
        return cls(HistoryStep(plan, "", settings))

    @property
    def plan(self) -> Plan:
        return self.present.plan

    def change(self, plan: Plan, label: str, settings: WriteSettings | None = None) -> History:
        """A new state; what had been undone is forgotten. An edit that changes nothing leaves no state behind.

        settings: None for those there are.
        """
        step = HistoryStep(plan, label, self.present.settings if settings is None else settings)
        if (step.plan, step.settings) == (self.plan, self.present.settings):
            return self
        return History(step, (*self.past, self.present))

    def undo(self) -> History:
        """One state back (the same history when there is none); `self.present.label` says what was undone."""
        if not self.past:
            return self
        return History(self.past[-1], self.past[:-1], (self.present, *self.future))

    def redo(self) -> History:
        if not self.future:
            return self
        return History(self.future[0], (*self.past, self.present), self.future[1:])
