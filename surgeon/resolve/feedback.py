"""Which tensors the feedback encoder writes, and why others are left to the stock encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from surgeon.gguf.identity import open_identity, same_identity
from surgeon.model.categories import TOKEN_EMBEDDINGS
from surgeon.model.model import Model
from surgeon.moments.thresholds import ENOUGH, FEWEST
from surgeon.plan.plan import Plan
from surgeon.resolve.preflight import Findings, named
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon_kernels import feedback_types
from surgeon_kernels.formats import FORMATS

if TYPE_CHECKING:
    from surgeon.moments.moments import Input, Moments


@dataclass(slots=True)
class FeedbackDecider:
    """Decides tensor after tensor; what is left out or thin is kept for the pre-flight list."""

    moments: Moments
    _left: dict[str, list[str]] = field(default_factory=dict)  # reason -> tensors
    _thin: list[str] = field(default_factory=list)
    _other: list[str] = field(default_factory=list)

    def decide(self, facts: TensorFacts, type_name: str) -> tuple[str | None, str]:
        """The input whose moments are used for a tensor that is quantized, and what the reason for its type adds."""
        if not FORMATS[type_name].is_quantized:
            return None, ""
        found = self.moments.of(facts.name)
        if found is None and facts.name in TOKEN_EMBEDDINGS:
            return None, "; stock encoder"
        why = self._unusable(facts, type_name, found)
        if why is not None or found is None:
            self._left.setdefault(why or "", []).append(facts.name)
            return None, f"; stock encoder: {why}"
        ratios = self.moments.ratios[found.name]
        usable = sum(ratio >= FEWEST for ratio in ratios)
        if min(ratio for ratio in ratios if ratio >= FEWEST) < ENOUGH:
            self._thin.append(facts.name)
        if usable < found.matrices:
            return found.name, f"; feedback encoder for {usable} of {found.matrices} experts, the others saw too little"
        return found.name, "; feedback encoder"

    def embedding_weights(self, columns: int) -> str | None:
        """The weight whose input weighs the errors of token embeddings: the first of layer 0 that is as wide.

        Embeddings are looked up, not multiplied, so they have no moments; but what they are goes, normalized, into the
        first layer. On the bundled model's Q2_K this takes 4 % (prose) to 10 % (code) off the KL divergence.
        """
        return next(
            (name for name, one in self.moments.inputs.items() if name.startswith("blk.0.") and one.columns == columns),
            None,
        )

    def _unusable(self, facts: TensorFacts, type_name: str, found: Input | None) -> str | None:
        """Why the stock encoder has to do, or None."""
        if type_name not in feedback_types:
            return f"none with feedback for {type_name}"
        if found is None:
            return "no second moments of its input"
        if (found.columns, found.matrices) != (facts.tensor.ne[0], prod(facts.tensor.ne[2:])):
            self._other.append(facts.name)
            return "second moments of another shape"
        if facts.slice is not None and facts.slice.dimension == 0:
            return "columns were pruned"
        most = max(self.moments.ratios[found.name])
        if most < FEWEST:
            return f"{most:.1f} tokens a column were seen, {FEWEST} are needed"
        return None

    def report(self, model: Model, plan: Plan, findings: Findings) -> None:
        """Tell what was found of the moments as a whole."""
        path = self.moments.path
        if plan.compat:
            findings.error("--compat gives llama-quantize's bytes, which know no feedback: leave out --moments")
        if self._other:
            findings.error(
                f"{path}: the second moments of {named(self._other)} have another shape: they were collected from "
                "another model"
            )
        elif not same_identity(self.moments.head.model, open_identity(model.file)):
            findings.warning(
                f"{path}: was collected from another file, {self.moments.head.model_name}; right if both are the same "
                "model"
            )
        for why, names in self._left.items():
            findings.warning(f"{_tensors(names)} left to the stock encoder, {why}: {named(names)}")
        if self._thin:
            findings.warning(
                f"second moments of {_tensors(self._thin)} saw fewer than {ENOUGH} tokens a column: "
                f"{named(self._thin)}; a longer calibration text is better"
            )


def _tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"
