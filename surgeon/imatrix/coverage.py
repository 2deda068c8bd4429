"""How well an importance matrix fits a model."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.categories import IMATRIX_EXEMPT, TOKEN_EMBEDDINGS, kept_because
from surgeon.model.model import Model, Tensor


@dataclass(frozen=True, slots=True)
class Misfit:
    """An entry whose number of values is not that of its tensor (row length × matrices)."""

    name: str
    found: int
    expected: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Names of the model's tensors, in stored order.

    covered, missing: tensors that can be quantized, with and without an entry (token embeddings and the output, which
    normally have none, are in neither unless they have one); misfits: entries of the wrong size, which llama-quantize
    refuses unless they are of a token embedding; orphans: entries without a tensor.
    """

    covered: tuple[str, ...]
    missing: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    orphans: tuple[str, ...]

    def summary(self) -> str:
        """`84/84` and whatever does not fit, for one line."""
        total = len(self.covered) + len(self.missing) + len(self.misfits)
        words = [f"{len(self.covered)}/{total} tensors covered"]
        if self.misfits:
            words.append(f"{len(self.misfits)} of the wrong size")
        if self.orphans:
            words.append(f"{len(self.orphans)} for no tensor of this model")
        return ", ".join(words)


def coverage(model: Model, imatrix: Imatrix) -> Coverage:
    """Compare the entries of `imatrix` with the tensors of `model`."""
    covered, missing, misfits = [], [], []
    for tensor in model.tensors:
        entry = imatrix.entries.get(tensor.name)
        if entry is None:
            if tensor.name not in IMATRIX_EXEMPT and _quantizable(tensor, model):
                missing.append(tensor.name)
        elif entry.sums.size != expected_values(tensor) and tensor.name not in TOKEN_EMBEDDINGS:
            misfits.append(Misfit(tensor.name, entry.sums.size, expected_values(tensor)))
        elif _quantizable(tensor, model):
            covered.append(tensor.name)
    names = {tensor.name for tensor in model.tensors}
    orphans = tuple(name for name in imatrix.entries if name not in names)
    return Coverage(tuple(covered), tuple(missing), tuple(misfits), orphans)


def experts_with_data(imatrix: Imatrix, model: Model | None = None) -> dict[str, tuple[int, int]]:
    """Name -> (experts with data, experts), of entries for several. The old format needs the model to know them."""
    counts = {name: len(entry.counts) for name, entry in imatrix.entries.items()}
    if model is not None:
        shapes = {tensor.name: tensor for tensor in model.tensors}
        for name, entry in imatrix.entries.items():
            tensor = shapes.get(name)
            if tensor is not None and len(tensor.ne) > 2 and entry.sums.size == expected_values(tensor):
                counts[name] = tensor.ne[2]
    return {name: (int(imatrix.seen(name, n).sum()), n) for name, n in counts.items() if n > 1}


def expected_values(tensor: Tensor) -> int:
    """Values an entry for `tensor` must have: the row length times the number of matrices (experts)."""
    return tensor.ne[0] * (tensor.ne[2] if len(tensor.ne) > 2 else 1)


def _quantizable(tensor: Tensor, model: Model) -> bool:
    return kept_because(tensor.name, tensor.ne, model.architecture) is None
