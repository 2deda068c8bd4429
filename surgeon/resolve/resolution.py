"""What a resolved plan looks like: one operation per tensor, the metadata to write and the pre-flight list."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.gguf.file import GGUFFile
from surgeon.gguf.values import Value
from surgeon.healing.heal_file import Heal
from surgeon.model.model import Model
from surgeon.plan.plan import Plan
from surgeon.problems import Problem
from surgeon.resolve.shards import Contents, Part, parts
from surgeon.resolve.tensor_op import TensorOp, file_bytes

if TYPE_CHECKING:
    from surgeon.moments.moments import Moments


@dataclass(frozen=True)
class Resolution:
    """A plan, applied to a model.

    ops: in output order, dropped tensors included; metadata: the key-value list to write; alignment: of the output;
    problems: worst first, an error forbids writing; renumbering: layer in the input -> in the output, None when pruned.
    heal: the open heal file that `TensorOp.healed` lie in;
    needs_imatrix: output names of tensors whose type cannot do without an imatrix entry that is not there;
    fallbacks: tensors whose row length forced another type; unseen_experts: those without data in the imatrix; moments:
    what the feedback encoder goes by, if it is used.
    """

    model: Model
    plan: Plan
    ops: tuple[TensorOp, ...]
    metadata: tuple[tuple[str, Value], ...]
    alignment: int
    problems: tuple[Problem, ...]
    renumbering: dict[int, int | None]
    needs_imatrix: tuple[str, ...] = ()
    heal: Heal | None = None
    fallbacks: int = 0
    unseen_experts: int = 0
    moments: Moments | None = None

    @property
    def sources(self) -> tuple[GGUFFile, ...]:
        """The files that tensors are read from."""
        return (self.model.file,) if self.heal is None else (self.model.file, self.heal.model.file)

    @cached_property
    def kept(self) -> tuple[TensorOp, ...]:
        return tuple([op for op in self.ops if op.action != "drop"])

    @cached_property
    def kept_layers(self) -> dict[int, int]:
        """Layer in the input -> in the output, of those that stay."""
        return {old: new for old, new in self.renumbering.items() if new is not None}

    @cached_property
    def kept_experts(self) -> dict[str, tuple[tuple[tuple[int, int], ...], int]]:
        """Tensor of the input -> (half-open ranges of the experts that stay, experts there were), where some go."""
        return {
            op.source: (op.slice.keep, op.tensor.ne[2])
            for op in self.kept
            if op.slice is not None and op.tensor.layer is not None and op.slice.dimension == 2
        }

    @cached_property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @cached_property
    def with_feedback(self) -> tuple[TensorOp, ...]:
        """The tensors that the feedback encoder writes."""
        return tuple([op for op in self.kept if op.feedback is not None and op.action == "convert"])

    @cached_property
    def data_bytes(self) -> int:
        """Bytes of the tensors written, without padding."""
        return sum([op.nbytes for op in self.kept])

    @cached_property
    def source_bytes(self) -> int:
        """Bytes that the tensors written have in the input."""
        return sum(op.tensor.nbytes for op in self.kept)

    @cached_property
    def n_parameters(self) -> int:
        """Parameters that remain: those of the model without what is dropped or cut off."""
        lost = sum([op.tensor.n_elements for op in self.ops if op.action == "drop"])
        cut = sum([op.tensor.n_elements - op.n_elements for op in self.kept if op.slice is not None])
        return self.model.n_parameters - lost - cut

    @property
    def bpw(self) -> float:
        """Bits per weight of the output."""
        return self.bits_per_weight(self.data_bytes)

    def bits_per_weight(self, nbytes: int) -> float:
        """`nbytes` over the parameters that remain; llama-quantize (`compat`) divides by those of the input."""
        count = self.model.n_parameters if self.plan.compat else self.n_parameters
        return 8 * nbytes / count if count else 0.0

    def parts(self, out: Path, split_max_bytes: int = 0) -> tuple[Part, ...]:
        """What each file holds that this becomes when written to `out`; split_max_bytes as in `shards.parts`."""
        shards = len(self.model.file.paths) if self.plan.keep_split else 0
        return parts(Contents(self.kept, self.metadata, self.alignment, shards), out, split_max_bytes)

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of the file, or of all shards with `keep_split`."""
        if self.plan.keep_split:
            return sum(
                file_bytes(part.kv, [self.kept[number] for number in part.numbers], part.alignment)
                for part in self.parts(self.model.file.path)
            )
        return file_bytes(self.metadata, self.kept, self.alignment)
