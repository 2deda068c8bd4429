"""The pre-flight list: everything that would fail, be ignored or surprise, shown before anything is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from surgeon.anatomy import ARCHITECTURES
from surgeon.layer_lists import spans
from surgeon.model.image_models import KEPT
from surgeon.model.kinds import NAMES, NO_MODELS, kind
from surgeon.model.layer_keys import wrong_length
from surgeon.model.loading import block_count_refusal
from surgeon.model.model import Model
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import Plan
from surgeon.problems import Problem
from surgeon.resolve.hparams import loader_refusal
from surgeon.resolve.tensor_facts import ModelFacts
from surgeon_kernels.formats import FORMATS, LOW_BIT
from surgeon_kernels.registry import dequantizable, quantizable

if TYPE_CHECKING:
    from surgeon.resolve.tensor_op import TensorOp

_PLAIN = frozenset({"F32", "F16", "BF16"})
_RANK = {"error": 0, "warning": 1, "note": 2}


@dataclass(slots=True)
class Findings:
    """What came to light while types were chosen. Lists hold tensor names (of the output, unless said otherwise)."""

    problems: list[Problem] = field(default_factory=list)
    needs_imatrix: list[str] = field(default_factory=list)
    without_entry: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)  # whole sentences
    unmatched_rules: list[str] = field(default_factory=list)
    idle_rules: list[str] = field(default_factory=list)  # that match only what is never quantized
    hidden_rules: list[str] = field(default_factory=list)  # by earlier ones
    by_hand_kept: list[str] = field(default_factory=list)
    unseen: list[tuple[str, int, int, str]] = field(default_factory=list)  # name (of the input), unseen, experts, type
    orphaned: str = ""  # a sentence: the imatrix is another model's
    bad_entries: list[str] = field(default_factory=list)  # sentences without their ends
    fallbacks: int = 0

    @property
    def count(self) -> int:
        """How much of single tensors came to light so far."""
        tensors = len(self.needs_imatrix) + len(self.without_entry) + len(self.by_hand_kept) + len(self.unseen)
        return tensors + len(self.problems) + len(self.sizes)

    def error(self, text: str) -> None:
        self.problems.append(Problem("error", text))

    def warning(self, text: str) -> None:
        self.problems.append(Problem("warning", text))

    def note(self, text: str) -> None:
        self.problems.append(Problem("note", text))


def named(names: Sequence[str], limit: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def report(
    model: Model,
    plan: Plan,
    facts: ModelFacts,
    ops: Sequence[TensorOp],
    findings: Findings,
    *,
    has_imatrix: bool,
) -> tuple[Problem, ...]:
    """All problems, worst first, each with the tensors it concerns and what to do."""
    _structure(model, plan, findings)
    _keys(model, plan, findings)
    _layers(plan, facts, ops, findings)
    _conversions(plan, ops, findings)
    _imatrix(model, findings, has_imatrix)
    _unseen(findings, plan.compat)
    _rules(plan, facts, findings)
    return tuple(sorted(findings.problems, key=lambda problem: _RANK[problem.severity]))


def _structure(model: Model, plan: Plan, findings: Findings) -> None:
    if plan.compat:
        refusal = loader_refusal(model, plan.override_kv)
        if refusal:
            findings.error(f"{model.file.path}: {refusal}, so llama-quantize refuses this file; leave out --compat")
        return
    if model.architecture not in ARCHITECTURES:
        unknown = f"architecture {model.architecture!r} is unknown to llama.cpp"
        base = FILE_TYPES[plan.file_type].base
        if model.architecture in KEPT:
            findings.note(f"{unknown}; as its field does, what would spoil pictures is kept as it is")
        elif plan.rules or plan.types or base is None or not FORMATS[base].is_quantized:
            findings.note(f"{unknown}; its tensors are quantized all the same")
        else:
            findings.warning(f"{unknown}, nor is it known here what must not be quantized: say so with --tensor-type")
        return
    other = kind(model.file)
    if other in NO_MODELS:
        findings.note(f"{model.file.path}: {NAMES[other]}")
    layers = frozenset(layer.index for layer in model.layers)
    mismatch = wrong_length(model, model.block_count) or block_count_refusal(model.file.kv, layers)
    if mismatch and other not in NO_MODELS:
        findings.warning(f"{model.file.path}: {mismatch}: llama.cpp will not load this model, nor what is made of it")


def _keys(model: Model, plan: Plan, findings: Findings) -> None:
    vital = (f"{model.architecture}.", "tokenizer.ggml.")
    gone = [key for key in plan.deleted_keys if key in model.file.kv and key.startswith(vital)]
    if gone:
        findings.warning(f"without {named(gone)} llama.cpp may not load the model, or run it otherwise")


def _layers(plan: Plan, facts: ModelFacts, ops: Sequence[TensorOp], findings: Findings) -> None:
    if not plan.pruned:
        return
    if plan.compat:
        duplicate = _duplicate(op.name for op in ops if op.action != "drop")
        if duplicate:
            findings.error(
                f"two tensors would be called {duplicate}: in llama-quantize blocks of all kinds share numbers"
            )
        return
    there = facts.unpruned.layers
    absent = sorted(plan.pruned - there.keys())
    if absent:
        have = f"layers {min(there)} to {max(there)}" if there else "no layers called blk.<number>"
        findings.error(f"cannot prune layer{'s' if len(absent) > 1 else ''} {spans(absent, 6)}: the model has {have}")
    elif plan.pruned >= there.keys():
        findings.error("cannot prune every layer: a model without layers does not load; keep at least one")


def _duplicate(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _conversions(plan: Plan, ops: Sequence[TensorOp], findings: Findings) -> None:
    """Pairs of types that cannot or may not be converted."""
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for op in ops:
        if op.action == "convert":
            pairs[op.from_type, op.to_type].append(op.source)
    missing: dict[str, list[str]] = defaultdict(list)
    requantized: list[str] = []
    for (source, target), names in pairs.items():
        format_ = FORMATS.get(source)
        if source not in _PLAIN and source not in dequantizable:
            findings.error(f"cannot convert {source} to {target}: {named(names)}; copy the model or prune only")
        elif format_ is not None and format_.is_quantized and not plan.allow_requantize:
            requantized += names
        if target not in quantizable:
            missing[target] += names
    for target, names in missing.items():
        findings.error(f"no kernel writes {target} yet: {named(names)}; choose another type")
    if requantized:
        findings.error(
            f"{_count(requantized, 'tensor')} already quantized would lose quality again: {named(requantized)}; "
            "allow it with --allow-requantize, or start from F16"
        )


def _imatrix(model: Model, findings: Findings, has_imatrix: bool) -> None:
    for sentence in findings.sizes[:3]:
        findings.error(sentence)
    if findings.orphaned:
        findings.error(findings.orphaned)
    if findings.bad_entries:
        more = len(findings.bad_entries) - 1
        name = findings.bad_entries[0].rpartition(": ")[2].split(" ")[0]
        findings.error(
            f"{findings.bad_entries[0]}{f' (and {more} more such entries)' if more else ''}; leave it out with "
            f"--exclude-weights {name}, or collect the imatrix again"
        )
    if findings.needs_imatrix:
        them = "it" if len(findings.needs_imatrix) == 1 else "them"
        found = f"the imatrix has no entry for {them}" if has_imatrix else "there is none"
        prediction = _prediction_hint(model, findings.needs_imatrix)
        findings.error(
            f"{_count(findings.needs_imatrix, 'tensor')} cannot be made without an imatrix, and {found}: "
            f"{named(findings.needs_imatrix)}; {prediction or 'give --imatrix or choose a larger type'}"
        )
    if findings.without_entry:
        findings.warning(
            f"no imatrix entry for {_count(findings.without_entry, 'tensor')}, quantized without: "
            f"{named(findings.without_entry)}"
        )


def _prediction_hint(model: Model, names: Sequence[str]) -> str:
    """How to go on where only layers of multi-token prediction have no entries: calibration does not run them."""
    count = model.hparam("nextn_predict_layers")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < model.block_count:
        return ""
    first = model.block_count - count
    layers = [layer.index for layer in model.layers if first <= layer.index < model.block_count]
    if not all(name.startswith(tuple(f"blk.{layer}." for layer in layers)) for name in names):
        return ""
    rule = "|".join(map(str, layers))
    pattern = rf"blk\.{rule}\." if len(layers) == 1 else rf"blk\.({rule})\."
    return f"calibration does not run layers of prediction (MTP): give them a type, --tensor-type '{pattern}=q4_k'"


def _unseen(findings: Findings, compat: bool) -> None:
    """Matrices of which calibration has no data: their errors are weighed as if there were no imatrix."""
    for experts in (True, False):
        unseen = [one for one in findings.unseen if (one[2] > 1) == experts]
        if not unseen:
            continue
        low = [one for one in unseen if one[3] in LOW_BIT]
        worst = sorted(low or unseen, key=lambda one: -one[1] / one[2])
        text = _without_data(worst, experts)
        if low:
            remedy = "collect over more text, or give them a larger type"
            findings.warning(f"{text}; at so few bits they suffer most: {remedy}")
        else:
            how = "with all values weighed alike, as llama-quantize does" if compat else "as without an imatrix"
            findings.note(f"{text}; they are quantized {how}")


def _without_data(unseen: Sequence[tuple[str, int, int, str]], experts: bool) -> str:
    tensors = _count([one[0] for one in unseen], "tensor")
    if not experts:
        return f"the imatrix entries of {tensors} hold no data (count 0): {named([one[0] for one in unseen])}"
    listed = named([f"{name} ({missing} of {total})" for name, missing, total, _ in unseen])
    return f"{sum(one[1] for one in unseen)} experts in {tensors} were never called in calibration: {listed}"


def _count(names: Sequence[str], word: str) -> str:
    return f"{len(names)} {word}{'s' if len(names) != 1 else ''}"


def _rules(plan: Plan, facts: ModelFacts, findings: Findings) -> None:
    base = FILE_TYPES[plan.file_type].base
    if plan.rules and (base is None or not FORMATS[base].is_quantized):
        findings.warning(f"--tensor-type has no effect with TYPE {plan.file_type}: choose a quantized TYPE as the base")
    else:
        nothing = {
            "matches no tensor": findings.unmatched_rules,
            "hidden by an earlier rule": findings.hidden_rules,
            "only for tensors that are never quantized": findings.idle_rules,
        }
        lines = [f"{why}: rule {named(rules)}" for why, rules in nothing.items() if rules]
        if lines:
            findings.warning("; ".join(lines))
    if base is not None and not facts.any_quantizable:
        findings.warning(f"nothing in this file can be quantized: TYPE {plan.file_type} has no effect, all is copied")
    unknown = [name for name, _ in plan.types if name not in facts.by_name]
    if unknown:
        findings.error(f"set by hand, but not in this model: {named(unknown)}; the recipe was made for another model")
    if findings.by_hand_kept:
        findings.warning(f"set by hand, but of a kind that is never quantized: {named(findings.by_hand_kept)}")
