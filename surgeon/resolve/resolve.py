"""What a plan does to a model, tensor by tensor: the one place that decides.

Tree, size estimate, dry run, writer and the exported command all read the `Resolution` made here.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from surgeon.anatomy import AnatomyResult, ExpertResult, TensorSlice, edit_counts, prune_experts, prune_metadata
from surgeon.anatomy.roles import MAX_BLOCKS
from surgeon.errors import SurgeonError
from surgeon.gguf.header import DEFAULT_ALIGNMENT
from surgeon.gguf.values import Value, ValueType
from surgeon.model.loading import key_refusals, vocabulary_rows
from surgeon.model.model import Model
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.patterns import SlowPatternError
from surgeon.plan.plan import Plan, TypeRule
from surgeon.resolve.decisions import Decider, Weights, made_before
from surgeon.resolve.feedback import FeedbackDecider
from surgeon.resolve.healed import add_healing, fitting_heal, with_healed
from surgeon.resolve.hparams import read_hparams
from surgeon.resolve.layer_numbers import Numbering, number_layers, number_layers_as_seen
from surgeon.resolve.metadata import (
    add_feedback,
    add_imatrix,
    add_provenance,
    apply_edits,
    base_metadata,
    set_block_count,
)
from surgeon.resolve.mixes import Mix
from surgeon.resolve.preflight import Findings, report
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.shards import SPLIT_KEYS
from surgeon.resolve.tensor_facts import ModelFacts, TensorFacts, facts_of, matching
from surgeon.resolve.tensor_op import TensorOp, sliced
from surgeon.resolve.type_choice import Chooser, chosen_by, winning_rules
from surgeon_kernels.formats import FORMATS

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.moments.moments import Moments

__all__ = ["Resolution", "TensorOp", "resolve"]


Order = tuple[TensorFacts, ...]


def resolve(model: Model, plan: Plan, imatrix: Imatrix | None = None, moments: Moments | None = None) -> Resolution:
    """Decide what `plan` does to every tensor of `model`.

    moments: second moments; with them quantized tensors are written by the feedback encoder. They serve as the imatrix
    too where there is none.
    Never raises for what a plan asks: everything that would fail is among `problems`, before anything is written.
    """
    facts = facts_of(model)
    findings = Findings()
    order = facts.by_offset if plan.keep_split else facts.by_layer
    numbering = _numbering(model, facts, order, plan)
    anatomy = _anatomy(model, plan, findings)
    experts = _experts(model, plan, findings)
    order = _with_surgery(order, anatomy, experts, findings)
    heal = fitting_heal(model, plan, findings)
    if heal is not None:
        order = with_healed(order, heal)
    if imatrix is None and moments is not None:
        imatrix = moments.as_imatrix
    weights = _entries(plan, imatrix)
    chooser = _chooser(model, facts, numbering, plan, bool(weights.sizes), findings)
    _judge(facts, plan, imatrix, weights, findings)
    feedback = FeedbackDecider(moments) if moments is not None else None
    made = made_before(model, plan, weights) if feedback is None else {}
    decider = Decider(numbering, chooser, weights, findings, feedback, made)
    ops = tuple([decider.operation(one) for one in order])
    metadata = _metadata(model, facts, plan, imatrix, weights, numbering, anatomy, experts, findings)
    if heal is not None:
        add_healing(metadata, heal)
    if feedback is not None:
        feedback.report(model, plan, findings)
        add_feedback(
            metadata, plan, feedback.moments, sum(op.feedback is not None and op.action == "convert" for op in ops)
        )
    return Resolution(
        model=model,
        plan=plan,
        ops=ops,
        metadata=tuple(metadata.items()),
        alignment=DEFAULT_ALIGNMENT if plan.compat else _alignment(metadata, findings),
        problems=report(model, plan, facts, ops, findings, has_imatrix=imatrix is not None),
        renumbering=numbering.layers,
        needs_imatrix=tuple(findings.needs_imatrix),
        fallbacks=findings.fallbacks,
        unseen_experts=sum(unseen for _, unseen, matrices, _ in findings.unseen if matrices > 1),
        heal=heal,
        moments=moments,
    )


def _numbering(model: Model, facts: ModelFacts, order: Order, plan: Plan) -> Numbering:
    if not plan.pruned:
        return facts.unpruned
    if plan.compat:
        return number_layers_as_seen([one.name for one in order], plan.pruned)
    return number_layers(facts.numbered, plan.pruned, min(model.block_count, MAX_BLOCKS))


def _anatomy(model: Model, plan: Plan, findings: Findings) -> AnatomyResult | None:
    if not plan.pruned or plan.compat:
        return None
    if model.block_count > MAX_BLOCKS:
        findings.error(
            f"{model.architecture}.block_count is {model.block_count}: the file is damaged, prune another copy"
        )
        return None
    last = model.layers[-1].index if model.layers else -1
    if last >= model.block_count:
        findings.error(
            f"{model.architecture}.block_count is {model.block_count}, but there are tensors of layer {last}: set the "
            f"right number with --override-kv and COPY before pruning, or download the model again"
        )
        return None
    try:
        result = prune_metadata(model, plan.pruned, i_know=plan.know_risks)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        findings.error(
            f"{model.file.path}: the metadata contradict themselves ({type(error).__name__}: {str(error)[:100]}), so "
            "pruning cannot follow them; download the model again"
        )
        return None
    findings.problems += result.notes
    return result


def _experts(model: Model, plan: Plan, findings: Findings) -> ExpertResult | None:
    if not plan.pruned_experts:
        return None
    if plan.compat:
        findings.error("llama-quantize cannot prune experts; leave out --compat")
        return None
    result = prune_experts(model, plan.pruned_experts, plan.pruned, i_know=plan.know_risks)
    findings.problems += result.notes
    return result


def _with_surgery(
    order: Order, anatomy: AnatomyResult | None, experts: ExpertResult | None, findings: Findings
) -> Order:
    """The facts with the shapes that sliced tensors will have and the factors of scaled ones."""
    slices = {one.name: one for result in (anatomy, experts) if result is not None for one in result.slices}
    for facts in order if slices else ():
        form = facts.tensor.info.format
        if facts.name in slices and (form is None or facts.columns % form.block):
            del slices[facts.name]
            what = f"is of the unknown {facts.from_type}" if form is None else f"has no whole blocks of {form.name}"
            findings.error(f"{facts.name} {what}, so nothing can be cut out of it; download the model again")
    scales = {one.name: one.factor for one in anatomy.scales} if anatomy is not None else {}
    if not slices and not scales:
        return order
    return tuple(
        _sliced_facts(facts, slices[facts.name])
        if facts.name in slices
        else facts._replace(scale=scales[facts.name])
        if facts.name in scales
        else facts
        for facts in order
    )


def _sliced_facts(facts: TensorFacts, kept: TensorSlice) -> TensorFacts:
    ne = sliced(facts.tensor.ne, kept)
    return facts._replace(slice=kept, columns=ne[0], rows=prod(ne[1:]))


def _entries(plan: Plan, imatrix: Imatrix | None) -> Weights:
    """Number of values of each imatrix entry that is to be used."""
    if imatrix is None:
        return Weights({}, given=False)
    if plan.include_weights or plan.exclude_weights:
        whole, imatrix = imatrix, imatrix.filtered(plan.include_weights, plan.exclude_weights)
        return Weights(imatrix.sizes, given=True, imatrix=whole)
    return Weights(imatrix.sizes, given=True, imatrix=imatrix)


def _judge(facts: ModelFacts, plan: Plan, imatrix: Imatrix | None, weights: Weights, findings: Findings) -> None:
    """What makes an importance matrix useless, entry by entry: after filtering, as llama-quantize does."""
    if imatrix is None:
        return
    bad = imatrix.bad
    if bad and (plan.include_weights or plan.exclude_weights):
        bad = imatrix.filtered(plan.include_weights, plan.exclude_weights).bad
    findings.bad_entries += [f"{imatrix.path}: {why}" for why in bad.values()]
    if weights.sizes and not plan.compat and not any(name in facts.by_name for name in weights.sizes):
        findings.orphaned = (
            f"{imatrix.path}: none of its {len(weights.sizes)} entries is for a tensor of this model, the first is for "
            f"{next(iter(weights.sizes))}; it was made for another model, leave out --imatrix"
        )


def _chooser(
    model: Model, facts: ModelFacts, numbering: Numbering, plan: Plan, has_imatrix: bool, findings: Findings
) -> Chooser:
    base = FILE_TYPES[plan.file_type].base
    base_quantized = base is not None and FORMATS[base].is_quantized
    mix = _mix(model, facts, numbering, plan, has_imatrix) if base_quantized and not plan.pure else None
    rules = _winning_rules(facts, numbering, plan, findings)
    chosen = {} if mix is None else chosen_by(mix)
    return Chooser(plan, base, base_quantized, mix, rules, dict(plan.types), chosen, dict(plan.reasons))


def _mix(model: Model, facts: ModelFacts, numbering: Numbering, plan: Plan, has_imatrix: bool) -> Mix:
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
        n_attention_wv=sum(
            numbering.names[name] is not None and (plan.compat or not facts.by_name[name].in_tower)
            for name in facts.attention_v
        ),
        tied=all(numbering.names[name] is None for name in facts.outputs),
        has_imatrix=has_imatrix,
        output_type=plan.output_tensor_type,
    )


def _winning_rules(facts: ModelFacts, numbering: Numbering, plan: Plan, findings: Findings) -> dict[str, TypeRule]:
    """By the names the user sees, those of the input; llama-quantize matches the renumbered ones."""
    found = []
    taken: set[str] = set()
    for rule in plan.rules:
        try:
            if plan.compat and plan.pruned:
                names = matching(rule.pattern, tuple(name for name in numbering.names.values() if name is not None))
            else:
                names = facts.matching(rule.pattern)
        except SlowPatternError as error:
            findings.error(str(error))
            break  # a recipe of a thousand such must not take a thousand times as long
        except SurgeonError as error:
            findings.error(str(error))
            continue
        quantizable = {name for name in names if name not in facts.by_name or facts.by_name[name].kept is None}
        if not names:
            findings.unmatched_rules.append(str(rule))
        elif not quantizable:
            findings.idle_rules.append(str(rule))
        elif quantizable <= taken:
            findings.hidden_rules.append(str(rule))
        taken |= quantizable
        found.append((rule, names))
    return winning_rules(found)


def _judge_overrides(model: Model, plan: Plan, kv: dict[str, Value], findings: Findings) -> None:
    """Refuse what --override-kv makes unloadable; what was so before is reported by `verify`."""
    layers, rows = frozenset(layer.index for layer in model.layers), vocabulary_rows(model)
    before = set(key_refusals(model.file.kv, layers, rows))
    for text in key_refusals(kv, layers, rows):
        if text not in before:
            if plan.know_risks:
                findings.warning(f"--override-kv: {text}")
            else:
                findings.error(f"--override-kv: {text}, so llama.cpp would not load it; --i-know allows it")


def _metadata(
    model: Model,
    facts: ModelFacts,
    plan: Plan,
    imatrix: Imatrix | None,
    weights: Weights,
    numbering: Numbering,
    anatomy: AnatomyResult | None,
    experts: ExpertResult | None,
    findings: Findings,
) -> dict[str, Value]:
    try:
        kv = base_metadata(model, plan, facts.types, any_quantizable=facts.any_quantizable)
    except SurgeonError as error:
        findings.error(str(error))
        kv = dict(model.file.kv)
    if plan.override_kv and not plan.compat:
        _judge_overrides(model, plan, kv, findings)
    of_shards = [override.key for override in plan.override_kv if override.key in SPLIT_KEYS]
    if of_shards:
        findings.warning(f"--override-kv {', '.join(of_shards)}: left out; these keys say how the output is split")
    if imatrix is not None and weights.sizes:
        add_imatrix(kv, plan, str(imatrix.path), imatrix.datasets, len(weights.sizes), imatrix.chunk_count)
    if plan.pruned:
        if numbering.count < 2**32:
            set_block_count(kv, model, numbering.count)
        else:
            findings.error(f"{model.file.path}: {numbering.count} layers are more than a GGUF can count")
    by_user = frozenset(override.key for override in plan.override_kv).union(plan.deleted_keys)
    if anatomy is not None:
        apply_edits(kv, [(key, value) for key, value in anatomy.kv if key not in by_user])
    if experts is not None and experts.slices:
        one_layer = next(frozenset(gone) for layer, gone in plan.pruned_experts if layer not in plan.pruned)
        findings.problems += edit_counts(kv, model, experts, one_layer, by_user)
    if anatomy is not None or experts is not None:
        add_provenance(kv, model, plan)
    return kv


def _alignment(metadata: dict[str, Value], findings: Findings) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    number = value.small()
    if value.type is not ValueType.UINT32 or number <= 0 or number & (number - 1):
        findings.error(f"general.alignment would be {number!r}: it must be a power of two, stored as uint32")
        return DEFAULT_ALIGNMENT
    return int(number)
