"""What a plan does to a model, tensor by tensor: the one place that decides.

Tree, size estimate, dry run, writer and the exported command all read the `Resolution` made here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from surgeon.choices import Chooser, UnfitError, Wanted, fitted, winning_rules
from surgeon.eligibility import ATTENTION_V_LIKE, IMATRIX_EXEMPT, TOKEN_EMBEDDINGS, Category
from surgeon.errors import SurgeonError
from surgeon.gguf_layout import padded
from surgeon.gguf_values import Value, ValueType
from surgeon.hparams import read_hparams
from surgeon.layer_numbers import Numbering, number_layers
from surgeon.mixes import FILE_TYPES, Mix
from surgeon.model import Model, Tensor
from surgeon.output_metadata import add_imatrix, add_provenance, base_metadata, set_block_count
from surgeon.plan import Plan, TypeRule
from surgeon.preflight import Findings, report
from surgeon.problems import Problem
from surgeon.tensor_facts import ModelFacts, TensorFacts, facts_of, matching
from surgeon_kernels.formats import FORMATS, REQUIRES_IMATRIX, USES_IMATRIX

if TYPE_CHECKING:
    from surgeon.imatrix import Imatrix

DEFAULT_ALIGNMENT = 32

# Types that llama-quantize refuses to make without an importance matrix.
_LOW_BIT = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})

Order = tuple[TensorFacts, ...]


@dataclass(frozen=True, slots=True)
class TensorOp:
    """What happens to one tensor.

    source, name: in the input and in the output (the same when dropped); nbytes: in the output; reason: one phrase for
    the user; imatrix_name: the entry that weighs the error, if any is used.
    """

    tensor: Tensor
    source: str
    name: str
    action: Literal["drop", "copy", "convert"]
    from_type: str
    to_type: str
    nbytes: int
    reason: str
    imatrix_name: str | None = None


@dataclass(frozen=True)
class Resolution:
    """A plan, applied to a model.

    ops: in output order, dropped tensors included; metadata: the key-value list to write; alignment: of the output;
    problems: worst first, an error forbids writing; renumbering: layer in the input -> in the output, None when pruned.
    needs_imatrix: output names of tensors whose type cannot do without an imatrix entry that is not there;
    fallbacks: tensors whose row length forced another type.
    """

    model: Model
    plan: Plan
    ops: tuple[TensorOp, ...]
    metadata: tuple[tuple[str, Value], ...]
    alignment: int
    problems: tuple[Problem, ...]
    renumbering: dict[int, int | None]
    needs_imatrix: tuple[str, ...] = ()
    fallbacks: int = 0

    @cached_property
    def kept(self) -> tuple[TensorOp, ...]:
        return tuple(op for op in self.ops if op.action != "drop")

    @cached_property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @cached_property
    def data_bytes(self) -> int:
        """Bytes of the tensors written, without padding."""
        return sum(op.nbytes for op in self.ops if op.action != "drop")

    @cached_property
    def n_parameters(self) -> int:
        """Parameters that remain."""
        return sum(op.tensor.n_elements for op in self.ops if op.action != "drop")

    @cached_property
    def bpw(self) -> float:
        """Bits per weight over the parameters that remain (with `compat` over those of the input)."""
        count = self.model.n_parameters if self.plan.compat else self.n_parameters
        return 8 * self.data_bytes / count if count else 0.0

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of the file, or of all shards with `keep_split`."""
        if self.plan.keep_split:
            from surgeon.splits import lay_out

            return sum(layout.header.total_bytes for layout in lay_out(self, self.model.file.path))
        head = 24 + sum(12 + len(key.encode()) + len(value.raw) for key, value in self.metadata)
        head += sum(24 + len(op.name.encode()) + 8 * _stored_dimensions(op.tensor.ne) for op in self.kept)
        return padded(head, self.alignment) + sum(padded(op.nbytes, self.alignment) for op in self.kept)


def _stored_dimensions(ne: tuple[int, ...]) -> int:
    count = len(ne)
    while count > 1 and ne[count - 1] == 1:
        count -= 1
    return count


def resolve(model: Model, plan: Plan, imatrix: Imatrix | None = None) -> Resolution:
    """Decide what `plan` does to every tensor of `model`.

    Never raises for what a plan asks: everything that would fail is among `problems`, before anything is written.
    """
    facts = facts_of(model)
    findings = Findings()
    order = facts.by_offset if plan.keep_split else facts.by_layer
    numbering = facts.unpruned
    if plan.pruned:
        numbering = number_layers([one.name for one in order], plan.pruned, anywhere=plan.compat)
    entries = _entries(plan, imatrix)
    chooser = _chooser(model, order, numbering, plan, bool(entries), findings)
    ops = tuple(_operate(one, numbering, chooser, entries, imatrix is not None, findings) for one in order)
    metadata = _metadata(model, facts, plan, imatrix, len(entries), numbering, findings)
    return Resolution(
        model=model,
        plan=plan,
        ops=ops,
        metadata=tuple(metadata.items()),
        alignment=DEFAULT_ALIGNMENT if plan.compat else _alignment(metadata, findings),
        problems=report(model, plan, facts, numbering, ops, findings, has_imatrix=imatrix is not None),
        renumbering=numbering.layers,
        needs_imatrix=tuple(findings.needs_imatrix),
        fallbacks=findings.fallbacks,
    )


def _entries(plan: Plan, imatrix: Imatrix | None) -> dict[str, int]:
    """Number of values of each imatrix entry that is to be used."""
    if imatrix is None:
        return {}
    if plan.include_weights or plan.exclude_weights:
        imatrix = imatrix.filtered(plan.include_weights, plan.exclude_weights)
    return {name: entry.sums.size for name, entry in imatrix.entries.items()}


def _chooser(
    model: Model, order: Order, numbering: Numbering, plan: Plan, has_imatrix: bool, findings: Findings
) -> Chooser:
    base = FILE_TYPES[plan.file_type].base
    base_quantized = base is not None and FORMATS[base].is_quantized
    mix = _mix(model, order, numbering, plan, has_imatrix) if base_quantized and not plan.pure else None
    rules = _winning_rules(model, numbering, plan, findings)
    return Chooser(plan, base, base_quantized, mix, rules, dict(plan.types))


def _mix(model: Model, order: Order, numbering: Numbering, plan: Plan, has_imatrix: bool) -> Mix:
    counts = Counter(one.category for one in order if numbering.names[one.name] is not None)
    hparams = read_hparams(model, plan.override_kv)
    gone = sum(number is None for number in numbering.layers.values())
    return Mix(
        file_type=FILE_TYPES[plan.file_type],
        architecture=hparams.architecture,
        # llama-quantize goes on counting with the layers there were.
        n_layer=hparams.block_count - (0 if plan.compat else gone),
        n_expert=hparams.n_expert,
        n_gqa=hparams.n_gqa,
        is_70b=hparams.is_70b,
        n_attention_wv=sum(counts[category] for category in ATTENTION_V_LIKE),
        tied=not counts[Category.OUTPUT],
        has_imatrix=has_imatrix,
        output_type=plan.output_tensor_type,
    )


def _winning_rules(model: Model, numbering: Numbering, plan: Plan, findings: Findings) -> dict[str, TypeRule]:
    """By the names the user sees, those of the input; llama-quantize matches the renumbered ones."""
    facts = facts_of(model)
    found = []
    for rule in plan.rules:
        try:
            if plan.compat and plan.pruned:
                names = matching(rule.pattern, tuple(name for name in numbering.names.values() if name is not None))
            else:
                names = facts.matching(rule.pattern)
        except SurgeonError as error:
            findings.error(str(error))
            continue
        if not names:
            findings.unmatched_rules.append(str(rule))
        found.append((rule, names))
    return winning_rules(found)


def _operate(
    facts: TensorFacts,
    numbering: Numbering,
    chooser: Chooser,
    entries: dict[str, int],
    has_imatrix: bool,
    findings: Findings,
) -> TensorOp:
    tensor, name, from_type = facts.tensor, numbering.names[facts.name], facts.from_type
    if name is None:
        return TensorOp(
            tensor, facts.name, facts.name, "drop", from_type, from_type, 0, f"pruned: layer {tensor.layer}"
        )
    wanted = _wanted(facts, name, numbering, chooser, findings)
    findings.fallbacks += wanted.fell_back
    if wanted.type is None:
        return TensorOp(tensor, facts.name, name, "copy", from_type, from_type, tensor.nbytes, wanted.why)
    if wanted.type == from_type:
        if chooser.plan.compat:
            _weigh(facts, name, wanted.type, chooser.plan, entries, has_imatrix, findings, copied=True)
        why = f"copied: same type ({wanted.why})"
        return TensorOp(tensor, facts.name, name, "copy", from_type, from_type, tensor.nbytes, why)
    entry = _weigh(facts, name, wanted.type, chooser.plan, entries, has_imatrix, findings)
    unweighed = has_imatrix and entry is None and wanted.type in USES_IMATRIX and facts.name not in IMATRIX_EXEMPT
    nbytes = facts.rows * FORMATS[wanted.type].row_bytes(facts.columns)
    reason = f"{wanted.why}; no imatrix entry" if unweighed else wanted.why
    return TensorOp(tensor, facts.name, name, "convert", from_type, wanted.type, nbytes, reason, entry)


def _wanted(facts: TensorFacts, name: str, numbering: Numbering, chooser: Chooser, findings: Findings) -> Wanted:
    """The type chosen and made to fit; a tensor for which there is none is left as it is, with an error."""
    compat = chooser.plan.compat
    layer = facts.tensor.layer if facts.tensor.layer is None else numbering.layers.get(facts.tensor.layer)
    if facts.kept is not None and facts.name in chooser.types:
        findings.by_hand_kept.append(facts.name)
    try:
        wanted = chooser.wanted(facts, name, layer, name if compat else facts.name)
        # llama-quantize writes out of bounds where one of its two dedicated options does not fit.
        return fitted(wanted, facts.columns, fallback=not compat or (chooser.base_quantized and not wanted.dedicated))
    except UnfitError as error:
        findings.error(f"{facts.name}: {error}")
    except SurgeonError as error:
        findings.error(str(error))
    return Wanted(None, "no type fits")


def _weigh(
    facts: TensorFacts,
    name: str,
    type_name: str,
    plan: Plan,
    entries: dict[str, int],
    has_imatrix: bool,
    findings: Findings,
    *,
    copied: bool = False,
) -> str | None:
    """The imatrix entry that weighs this tensor's error; what is missing or does not fit goes to the findings."""
    size = entries.get(facts.name)
    needed = facts.columns * facts.matrices
    if size is not None and size != needed and not copied:
        if facts.name not in TOKEN_EMBEDDINGS:
            findings.sizes.append(
                f"the imatrix has {size} values for {facts.name}, which needs {needed}: it was made for another model"
            )
        size = None
    if size is not None:
        return facts.name if type_name in USES_IMATRIX else None
    if facts.name in IMATRIX_EXEMPT:
        required = type_name in REQUIRES_IMATRIX and not copied
    else:
        required = type_name in _LOW_BIT or (type_name == "Q2_K" and plan.file_type == "Q2_K_S")
    if required:
        # A copy needs nothing, but llama-quantize refuses it when there is no imatrix at all.
        if not (copied and entries):
            findings.needs_imatrix.append(name)
    elif has_imatrix and type_name in USES_IMATRIX and facts.name not in IMATRIX_EXEMPT:
        findings.without_entry.append(facts.name)
    return None


def _metadata(
    model: Model,
    facts: ModelFacts,
    plan: Plan,
    imatrix: Imatrix | None,
    entries: int,
    numbering: Numbering,
    findings: Findings,
) -> dict[str, Value]:
    try:
        kv = base_metadata(model, plan, (one.from_type for one in facts.by_layer))
    except SurgeonError as error:
        findings.error(str(error))
        kv = dict(model.file.kv)
    if imatrix is not None and entries:
        add_imatrix(kv, plan, str(imatrix.path), imatrix.datasets, entries, imatrix.chunk_count)
    if plan.pruned:
        set_block_count(kv, model, numbering.count)
        if not plan.compat:
            add_provenance(kv, model, plan)
    return kv


def _alignment(metadata: dict[str, Value], findings: Findings) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    number = value.decode()
    if value.type is not ValueType.UINT32 or number <= 0 or number & (number - 1):
        findings.error(f"general.alignment would be {number!r}: it must be a power of two, stored as uint32")
        return DEFAULT_ALIGNMENT
    return int(number)
