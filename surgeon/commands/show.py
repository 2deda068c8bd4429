"""`surgeon show`: the layers and tensors of a model, once, with what an importance matrix says about them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.parser import Parser
from surgeon.figures import size
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.gguf.values import Value
    from surgeon.imatrix.coverage import Coverage
    from surgeon.imatrix.experts import ExpertSums
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics
    from surgeon.model.model import Layer, Model, Tensor

HELP = """\
Σ(Bias), entropy and CosSim are those of `surgeon stats` (which explains them); CosSim is blank where the layer before
has no such tensor. `=` names the tensors that read the same activations; `no imatrix` marks tensors that could be
quantized but have no entry in the importance matrix. Of a layer with experts: `idle` were never called, and `low 25%`
is the share of the router's weight that the least salient quarter gets (all of them: surgeon stats --experts).
"""


@dataclass(frozen=True)
class Matrix:
    """What is known from an importance matrix, by name and by layer.

    sums: of the experts, None without any.
    """

    imatrix: Imatrix
    coverage: Coverage
    tensors: dict[str, TensorStatistics]
    layers: dict[int, LayerStatistics]
    shared: dict[str, tuple[str, ...]]
    experts: dict[str, tuple[int, int]]
    sums: ExpertSums | None

    def idle(self, layer: int) -> int | None:
        """How many experts of a layer were never called; None where it has none."""
        if self.sums is None or layer not in self.sums.layers:
            return None
        return int((self.sums.calls[layer] == 0).sum())

    def low(self, layer: int) -> float | None:
        """The share of the router's weight that a layer's least salient quarter gets; None where it is unknown."""
        if self.sums is None or layer not in self.sums.layers or not self.sums.gate[layer].any():
            return None
        return self.sums.weight_of_least(layer, 0.25)


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon show",
        description="The layer/tensor tree of a model.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a GGUF file, or any shard of one")
    parser.add_argument("--imatrix", metavar="F", type=Path, help="importance matrix (GGUF or .dat)")
    parser.add_argument("--metadata", action="store_true", help="the keys; long values in short, with --json whole")
    parser.add_argument(
        "--key", metavar="KEY", help="the value of one key, whole: tokenizer.chat_template, for instance"
    )
    parser.add_argument("--tensor", metavar="NAME", help="the weights of one tensor: histogram, spread, outliers")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    options = parser.parse_args(arguments)

    from surgeon.model.model import load_model

    model = load_model(options.model)
    if options.key is not None:
        return _print_key(model, options.key, as_json=options.json)
    if options.tensor is not None:
        return _print_weights(model, options.tensor, as_json=options.json)
    if options.metadata:
        if options.json:
            _print_json({key: _value_json(value) for key, value in model.file.kv.items()})
        else:
            tell(metadata_lines(model))
        return 0
    matrix = _matrix(model, options.imatrix) if options.imatrix else None
    if options.json:
        _print_json(as_json(model, matrix))
    else:
        tell(tree(model, matrix))
    return 0


def _print_json(value: object) -> None:
    from surgeon.json_text import json_text

    print(json_text(value, indent=1))


def metadata_lines(model: Model) -> list[str]:
    """A line for each key: name, type, value."""
    width = max(map(len, model.file.kv), default=0)
    return [f"{key:<{width}}  {value.type.name.lower():<8} {value.brief()}" for key, value in model.file.kv.items()]


def _print_key(model: Model, key: str, *, as_json: bool) -> int:
    """Raises SurgeonError for a key that the model has not."""
    from surgeon.errors import SurgeonError

    value = model.file.kv.get(key)
    if value is None:
        import difflib

        near = difflib.get_close_matches(key, model.file.kv, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; --metadata lists them"
        raise SurgeonError(f"{model.file.path}: no key {key}{hint}")
    if as_json:
        _print_json(_value_json(value))
    else:
        found = value.decode()
        tell(str(found).splitlines() if value.element_type is None else map(str, found))
    return 0


def _print_weights(model: Model, name: str, *, as_json: bool) -> int:
    """Raises SurgeonError for a tensor that the model has not or that cannot be decoded."""
    import difflib
    from dataclasses import asdict

    from surgeon.commands.printing.weights_text import weights_text
    from surgeon.errors import SurgeonError
    from surgeon.measure.weight_figures import weight_figures

    tensors = {tensor.name: tensor for tensor in model.tensors}
    if name not in tensors:
        near = difflib.get_close_matches(name, tensors, n=1)
        raise SurgeonError(f"{model.file.path}: no tensor {name}{f'; did you mean {near[0]}?' if near else ''}")
    found = weight_figures(model, tensors[name])
    if as_json:
        _print_json(asdict(found))
    else:
        tell(weights_text(found))
    return 0


def _value_json(value: Value) -> dict[str, object]:
    return {"type": value.type.name.lower(), "value": value.decode()}


def _matrix(model: Model, path: Path) -> Matrix:
    from surgeon.commands.printing.expert_table import known_experts
    from surgeon.imatrix.coverage import coverage, experts_with_data
    from surgeon.imatrix.files import load_imatrix
    from surgeon.imatrix.influence import load_influence
    from surgeon.imatrix.statistics import layer_statistics, shared_inputs, tensor_statistics

    imatrix = load_imatrix(path, judged=True)
    influence = load_influence(path, channels=False)
    rows = tensor_statistics(imatrix)
    return Matrix(
        imatrix,
        coverage(model, imatrix),
        {row.name: row for row in rows},
        {row.layer: row for row in layer_statistics(rows)},
        shared_inputs(imatrix),
        experts_with_data(imatrix, model),
        known_experts(imatrix, influence.experts if influence is not None else None),
    )


def tree(model: Model, matrix: Matrix | None) -> Iterator[str]:
    """The lines of the tree: tensors outside layers first, then each layer with its tensors below it."""
    from humanize import intword

    from surgeon.model.image_models import block_of
    from surgeon.model.kinds import NAMES, kind

    architecture = model.architecture or "unknown architecture"
    yield (
        f"{model.name} · {architecture} · {len(model.layers)} layers · {intword(model.n_parameters, '%.2f')} parameters"
        f" · {size(model.nbytes)} · {model.bpw:.2f} bpw{_experts(model)}"
    )
    other = kind(model.file)
    if other in NAMES:
        yield NAMES[other]
    if matrix:
        chunks = f" · {matrix.imatrix.chunk_count} chunks" if matrix.imatrix.chunk_count else ""
        yield f"imatrix {matrix.imatrix.path.name}{chunks} · {matrix.coverage.summary()}"
    yield ""
    width = max([len(tensor.short) for tensor in model.tensors] + [12]) + 2
    head = f"{'name':<{width}} {'shape':<16} {'type':<9} {'size':>9}"
    yield (head + f" {'Σ(Bias)':>12} {'entropy':>8} {'CosSim':>8}" if matrix else head).rstrip()
    block = ""
    for tensor in model.others:
        if (found := block_of(tensor.name)) != block and found:
            yield _block_line(found, model, width)
        block = found
        label = f"  {tensor.name.removeprefix(f'{block}.')}" if block else tensor.name
        yield _tensor_line(tensor, label.removesuffix(".weight"), width, matrix)
    for layer in model.layers:
        yield _layer_line(layer, width, matrix)
        for tensor in layer.tensors:
            yield _tensor_line(tensor, "  " + tensor.short, width, matrix)
    if matrix:
        yield from _misfit_lines(matrix.coverage)


def _experts(model: Model) -> str:
    if not any(tensor.name.endswith("ffn_gate_inp.weight") for tensor in model.tensors):
        return ""  # without a router there are none, and the table of architectures need not be read
    from surgeon.anatomy import expert_model

    experts = expert_model(model)
    return f" · {experts.count} experts, {experts.used} used" if experts.layers else ""


def _tensor_line(tensor: Tensor, label: str, width: int, matrix: Matrix | None) -> str:
    shape = "×".join(map(str, tensor.ne))
    line = f"{label:<{width}} {shape:<16} {tensor.type_name:<9} {size(tensor.nbytes):>9}"
    if matrix is None:
        return line
    row = matrix.tensors.get(tensor.name)
    if row:
        line += f" {row.sum_bias:12.2f} {row.entropy:8.4f} {_cosine(row.cossim):>8}"
    return (line + _mark(tensor.name, matrix)).rstrip()


def _mark(name: str, matrix: Matrix) -> str:
    from surgeon.imatrix.statistics import split_name

    if name in matrix.coverage.missing:
        return "  no imatrix"
    seen, experts = matrix.experts.get(name, (0, 0))
    if seen < experts:
        return f"  {seen} of {experts} experts have data"
    others = matrix.shared.get(name, ())
    return f"  = {', '.join(split_name(other)[1] for other in others)}" if others else ""


def _layer_line(layer: Layer, width: int, matrix: Matrix | None) -> str:
    bpw = 8 * layer.nbytes / layer.n_elements
    line = f"{f'blk.{layer.index}':<{width}} {'':<16} {f'{bpw:.2f} bpw':<9} {size(layer.nbytes):>9}"
    row = matrix.layers.get(layer.index) if matrix else None
    if matrix is None or row is None:
        return line
    cells = f"{line} {row.sum_bias:12.2f} {'':>8} {_cosine(row.cossim):>8}"
    return f"{cells}{_layer_experts(layer.index, matrix)}".rstrip()


def _layer_experts(layer: int, matrix: Matrix) -> str:
    """`  idle 0, low 25% 12.3%`: experts never called, and what the least salient quarter weighs."""
    idle, low = matrix.idle(layer), matrix.low(layer)
    if idle is None:
        return ""
    return f"  idle {idle}" + ("" if low is None else f", low 25% {100 * low:.1f}%")


def _block_line(block: str, model: Model, width: int) -> str:
    """A block of an image model, as the layers of the others."""
    from surgeon.model.image_models import block_of

    tensors = [tensor for tensor in model.others if block_of(tensor.name) == block]
    nbytes = sum(tensor.nbytes for tensor in tensors)
    bpw = 8 * nbytes / max(1, sum(tensor.n_elements for tensor in tensors))
    return f"{block:<{width}} {'':<16} {f'{bpw:.2f} bpw':<9} {size(nbytes):>9}"


def _misfit_lines(coverage: Coverage) -> Iterator[str]:
    if coverage.misfits or coverage.orphans:
        yield ""
    for misfit in coverage.misfits:
        yield f"imatrix entry {misfit.name} has {misfit.found} values, the tensor needs {misfit.expected}"
    for name in coverage.orphans:
        yield f"imatrix entry {name} is for no tensor of this model"


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def as_json(model: Model, matrix: Matrix | None) -> dict[str, object]:
    """The object of --json; sizes in bytes, `ne` with the row length first, figures null where there is none."""
    document: dict[str, object] = {
        "file": str(model.file.path),
        "name": model.name,
        "architecture": model.architecture,
        "block_count": model.block_count,
        "parameters": model.n_parameters,
        "bytes": model.nbytes,
        "bpw": model.bpw,
        "layers": [_layer_json(layer, matrix) for layer in model.layers],
        "tensors": [_tensor_json(tensor, matrix) for tensor in model.tensors],
    }
    if matrix:
        document["imatrix"] = {
            "file": str(matrix.imatrix.path),
            "chunk_count": matrix.imatrix.chunk_count,
            "datasets": list(matrix.imatrix.datasets),
            "covered": list(matrix.coverage.covered),
            "missing": list(matrix.coverage.missing),
            "wrong_size": [
                {"name": misfit.name, "values": misfit.found, "expected": misfit.expected}
                for misfit in matrix.coverage.misfits
            ],
            "without_tensor": list(matrix.coverage.orphans),
        }
    return document


def _layer_json(layer: Layer, matrix: Matrix | None) -> dict[str, object]:
    from surgeon.commands.stats import exact

    document: dict[str, object] = {"layer": layer.index, "bytes": layer.nbytes, "parameters": layer.n_elements}
    row = matrix.layers.get(layer.index) if matrix else None
    if row:
        cossim = None if row.cossim is None else exact(row.cossim)
        document |= {"sum": exact(row.sum_bias), "zd": exact(row.zd), "cossim": cossim}
    if matrix:
        document |= {"idle": matrix.idle(layer.index), "low": matrix.low(layer.index)}
    return document


def _tensor_json(tensor: Tensor, matrix: Matrix | None) -> dict[str, object]:
    from surgeon.commands.stats import exact

    document: dict[str, object] = {
        "name": tensor.name,
        "layer": tensor.layer,
        "ne": list(tensor.ne),
        "type": tensor.type_name,
        "bytes": tensor.nbytes,
    }
    if matrix:
        row = matrix.tensors.get(tensor.name)
        document |= {
            "imatrix": tensor.name in matrix.imatrix.entries,
            "sum": exact(row.sum_bias) if row else None,
            "entropy": exact(row.entropy) if row else None,
            "cossim": exact(row.cossim) if row and row.cossim is not None else None,
            "same_input": list(matrix.shared.get(tensor.name, ())),
        }
    return document
