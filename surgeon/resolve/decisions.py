"""From the type a tensor shall have to what is done to it, and with which importances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from surgeon.errors import SurgeonError
from surgeon.model.categories import IMATRIX_EXEMPT, TOKEN_EMBEDDINGS
from surgeon.model.model import Model, Tensor
from surgeon.plan.plan import Plan
from surgeon.resolve.feedback import FeedbackDecider
from surgeon.resolve.layer_numbers import Numbering
from surgeon.resolve.preflight import Findings
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon.resolve.tensor_op import Cause, TensorOp, renamed
from surgeon.resolve.type_choice import COPIED, Chooser, TypeWish, UnfitError, fitted
from surgeon_kernels.formats import LOW_BIT, REQUIRES_IMATRIX, USES_IMATRIX

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix


@dataclass(frozen=True, slots=True)
class Weights:
    """Importances at hand.

    sizes: entry -> number of values, after filtering; given: there is an imatrix at all; imatrix: it, unfiltered.
    """

    sizes: dict[str, int]
    given: bool
    imatrix: Imatrix | None = None

    def unseen(self, name: str, facts: TensorFacts) -> tuple[int, int]:
        """How many of a tensor's matrices (experts) that stay were never called in calibration, and how many stay."""
        keep: tuple[tuple[int, int], ...] = ((0, facts.matrices),)
        if facts.slice is not None and facts.slice.dimension == 2:
            keep = facts.slice.keep
        stay = sum(end - start for start, end in keep)
        if self.imatrix is None:
            return 0, stay
        seen = self.imatrix.seen(name, facts.matrices)
        return stay - sum(seen[start:end].tolist().count(True) for start, end in keep), stay


_KEPT = TypeWish(None, "", Cause.KEPT)
# What was decided of a tensor: its facts and the wish it was decided from, and the operation.
Made = tuple[TensorFacts, TypeWish, TensorOp]


@dataclass(frozen=True, slots=True)
class MadeBefore:
    """What was decided of the tensors of a model; circumstances: all that counts besides facts, wishes and imatrix."""

    circumstances: tuple[object, ...]
    imatrix: Imatrix | None
    operations: dict[str, Made] = field(default_factory=dict)


_made: WeakKeyDictionary[Model, tuple[MadeBefore, ...]] = WeakKeyDictionary()


def made_before(model: Model, plan: Plan, weights: Weights) -> dict[str, Made]:
    """What was decided of a model's tensors under the same circumstances, of the last two; the decider adds to it."""
    circumstances = plan.compat, plan.file_type, plan.include_weights, plan.exclude_weights
    before = _made.get(model, ())
    for made in before:
        if made.circumstances == circumstances and made.imatrix is weights.imatrix:
            return made.operations
    made = MadeBefore(circumstances, weights.imatrix)
    _made[model] = (made, *before)[:2]
    return made.operations


@dataclass(frozen=True, slots=True)
class Decider:
    """Decides tensor after tensor, in output order; what would fail or surprise goes to the findings.

    made: what was decided before under the same circumstances, where nothing was found to tell of.
    """

    numbering: Numbering
    chooser: Chooser
    weights: Weights
    findings: Findings
    feedback: FeedbackDecider | None = None
    made: dict[str, Made] = field(default_factory=dict)

    def operation(self, facts: TensorFacts) -> TensorOp:
        """The same as the last time where facts and wish are the same, but for the name."""
        source, name = facts.name, self.numbering.names[facts.name]
        if name is None:
            return _dropped(facts)
        if facts.kept is None:
            wanted = self._wanted(facts, name)
            if wanted.fell_back:
                self.findings.fallbacks += 1
        else:
            wanted = _KEPT
            if source in self.chooser.types:
                self.findings.by_hand_kept.append(source)
        known = self.made.get(source)
        if known is None or known[0] is not facts or (known[1] is not wanted and known[1] != wanted):
            before = self.findings.count
            op = self._operation(facts, name, wanted)
            if self.feedback is None and self.findings.count == before:
                self.made[source] = facts, wanted, op
            return op
        op = known[2]
        if op.name != name:
            op = renamed(op, name)
            self.made[source] = facts, wanted, op
        return op

    def _operation(self, facts: TensorFacts, name: str, wanted: TypeWish) -> TensorOp:
        if facts.kept is not None:
            op = _copy(facts, name, wanted, f"not quantized: {facts.kept}")
        elif wanted.type is None or wanted.type == facts.from_type:
            op = _copy(facts, name, wanted, self._copied(facts, name, wanted))
        else:
            op = self._converted(facts, name, wanted, wanted.type)
        return op if facts.healed is None else _healed(op, *facts.healed)

    def _converted(self, facts: TensorFacts, name: str, wanted: TypeWish, to_type: str) -> TensorOp:
        entry, reason = self._embedding_entry(facts, to_type), wanted.why + _experts_left(facts)
        if entry is not None:
            reason += f"; weighed by the input of {entry}"
        else:
            entry = self._weigh(facts, name, to_type)
        if entry is None and self._looked_for(facts, to_type):
            reason += "; no imatrix entry"
        unseen, stay = self.weights.unseen(entry, facts) if entry is not None else (0, 0)
        if unseen:
            self.findings.unseen.append((facts.name, unseen, stay, to_type))
            have = f"{stay - unseen} of {stay} experts have data"
            reason += f"; {have if facts.matrices > 1 else 'its imatrix entry has no data'}"
        feedback = None
        if self.feedback is not None:
            feedback, why = self.feedback.decide(facts, to_type)
            reason += why
        return TensorOp(
            facts.tensor, facts.name, name, "convert", facts.from_type, to_type, facts.nbytes_as(to_type), reason,
            entry, facts.slice, None, wanted.cause, wanted.rule, wanted.fell_back, feedback,
        )  # fmt: skip

    def _copied(self, facts: TensorFacts, name: str, wanted: TypeWish) -> str:
        if wanted.type is None:
            return wanted.why
        # A copy needs no importances, yet llama-quantize refuses it when there is no imatrix at all.
        if self.chooser.plan.compat and not self.weights.sizes and self._required(facts, wanted.type):
            self.findings.needs_imatrix.append(name)
        return f"copied: same type ({wanted.why})"

    def _wanted(self, facts: TensorFacts, name: str) -> TypeWish:
        """The type chosen and made to fit; a tensor for which there is none is left as it is, with an error."""
        chooser = self.chooser
        if chooser.base is None and facts.name not in chooser.types:
            return COPIED
        compat = chooser.plan.compat
        layer = None if facts.tensor.layer is None else self.numbering.layers.get(facts.tensor.layer)
        try:
            wanted = chooser.wanted(facts, name, layer, name if compat else facts.name)
            # llama-quantize writes out of bounds where one of its two dedicated options does not fit.
            fallback = not compat or (chooser.base_quantized and not wanted.dedicated)
            return fitted(wanted, facts.columns, fallback=fallback)
        except UnfitError as error:
            self.findings.error(f"{facts.name}: {error}")
        except SurgeonError as error:
            self.findings.error(str(error))
        return TypeWish(None, "no type fits", Cause.UNFIT)

    def _weigh(self, facts: TensorFacts, name: str, type_name: str) -> str | None:
        """The imatrix entry that weighs this tensor's error, if there is one and the type makes use of it."""
        size, needed = self.weights.sizes.get(facts.name), facts.columns * facts.matrices
        if size == needed:
            return facts.name if type_name in USES_IMATRIX else None
        if size is not None and facts.name not in TOKEN_EMBEDDINGS:
            self.findings.sizes.append(
                f"the imatrix has {size} values for {facts.name}, which needs {needed}: it was made for another model"
            )
        elif self._required(facts, type_name):
            self.findings.needs_imatrix.append(name)
        elif self._looked_for(facts, type_name):
            self.findings.without_entry.append(facts.name)
        return None

    def _embedding_entry(self, facts: TensorFacts, type_name: str) -> str | None:
        """The imatrix entry of another weight that weighs token embeddings, where there are second moments and the
        embeddings have no entry of their own."""
        if self.feedback is None or facts.name != "token_embd.weight" or facts.name in self.weights.sizes:
            return None
        entry = self.feedback.embedding_weights(facts.columns)
        fits = entry is not None and self.weights.sizes.get(entry) == facts.columns
        return entry if fits and type_name in USES_IMATRIX else None

    def _looked_for(self, facts: TensorFacts, type_name: str) -> bool:
        """Whether an entry would be used and could be expected: the graph reads embeddings by row."""
        return self.weights.given and type_name in USES_IMATRIX and facts.name not in IMATRIX_EXEMPT

    def _required(self, facts: TensorFacts, type_name: str) -> bool:
        if facts.name in IMATRIX_EXEMPT:
            return type_name in REQUIRES_IMATRIX
        return type_name in LOW_BIT or (type_name == "Q2_K" and self.chooser.plan.file_type == "Q2_K_S")


def _dropped(facts: TensorFacts) -> TensorOp:
    source, kind = facts.name, facts.from_type
    reason = f"pruned: {_place(source)}"
    return TensorOp(facts.tensor, source, source, "drop", kind, kind, 0, reason, cause=Cause.PRUNED)


def _healed(op: TensorOp, tensor: Tensor, why: str) -> TensorOp:
    """The same type as without healing, made of the healed tensor."""
    same = tensor.type_name == op.to_type
    return op._replace(
        action="copy" if same else "convert", from_type=tensor.type_name, healed=tensor, reason=f"{why}; {op.reason}"
    )


def _copy(facts: TensorFacts, name: str, wish: TypeWish, why: str) -> TensorOp:
    tensor, kind, reason = facts.tensor, facts.from_type, why + _experts_left(facts)
    if facts.scale is not None:
        reason += f"; multiplied by {facts.scale:.6g}, or pruning would change the attention scale"
    nbytes = tensor.nbytes if facts.slice is None else facts.nbytes_as(kind)
    return TensorOp(
        tensor, facts.name, name, "copy", kind, kind, nbytes, reason, None, facts.slice, facts.scale,
        wish.cause, wish.rule, wish.fell_back,
    )  # fmt: skip


def _experts_left(facts: TensorFacts) -> str:
    """`; 6 of 8 experts` for a tensor of a layer that loses some."""
    if facts.slice is None or facts.tensor.layer is None:
        return ""
    return f"; {facts.slice.length} of {facts.tensor.ne[facts.slice.dimension]} experts"


def _place(name: str) -> str:
    number = name.partition("blk.")[2].partition(".")[0]
    return f"layer {number}"
