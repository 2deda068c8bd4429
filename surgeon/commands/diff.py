"""`surgeon diff`: what two models differ in."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import figures
from surgeon.commands.options.parser import Parser
from surgeon.commands.printing.text_table import table
from surgeon.json_text import json_text
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.measure.difference import Difference, Pair
    from surgeon.model.model import Model, Tensor

HELP = """\
Tensors are paired by name. `error` is sqrt(sum (a - b)^2 / sum a^2) over a sample of rows of each tensor: how far B's
weights are from A's. With A the unquantized model it is the error of B's types; between two quantized models it holds
the errors of both. 0 means the same weights. Exit code 0 whether or not they differ.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon diff",
        description="What B has that A has not: types, sizes, metadata, error of every tensor.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", metavar="A", type=Path, help="a GGUF file, or any shard of one")
    parser.add_argument("second", metavar="B", type=Path, help="another")
    parser.add_argument("--no-errors", dest="errors", action="store_false", help="read no tensor data")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    options = parser.parse_args(arguments)

    from surgeon.measure.difference import difference, errors
    from surgeon.model.model import load_model

    found = difference(load_model(options.first), load_model(options.second))
    measured = {pair.name: error for pair, error in errors(found)} if options.errors else {}
    if options.json:
        print(json_text(as_json(found, measured), indent=1))
    else:
        tell(list(report(found, measured)))
    return 0


def report(found: Difference, measured: Mapping[str, float]) -> Iterator[str]:
    """Sizes, then the kinds of tensors that differ, then the keys."""
    from surgeon.measure.difference import type_counts

    yield f"A  {_about(found.first)}"
    yield f"B  {_about(found.second)}"
    rows = []
    kinds = _kinds(found, measured)
    for kind, pairs in kinds.items():
        one = type_counts([pair.first for pair in pairs])
        other = type_counts([pair.second for pair in pairs])
        rows.append(
            [kind, one, "=" if one == other and all(p.same_type for p in pairs) else other, _error(pairs, measured)]
        )
    yield ""
    if rows:
        yield from table(["tensors", "A", "B", "error"], rows).splitlines()
    else:
        yield "tensors: the same types, shapes and names"
    yield ""
    if found.metadata:
        keys = [[key.name, _text(key.first), _text(key.second)] for key in found.metadata]
        yield from table(["metadata", "A", "B"], keys).splitlines()
    else:
        yield "metadata: the same"


def _kinds(found: Difference, measured: Mapping[str, float]) -> dict[str, tuple[Pair, ...]]:
    """Kinds that differ in types, and those of one type whose weights differ."""
    kinds = dict(found.kinds)
    for pair in found.tensors:
        if pair.kind not in kinds and measured.get(pair.name):
            kinds[pair.kind] = tuple(other for other in found.tensors if other.kind == pair.kind)
    return kinds


def _about(model: Model) -> str:
    layers, tensors = figures.counted(len(model.layers), "layer"), figures.counted(len(model.tensors), "tensor")
    return f"{model.file.path}  {figures.size(model.file.nbytes)}  {model.bpw:.2f} bpw  {layers}  {tensors}"


def _error(pairs: tuple[Pair, ...], measured: Mapping[str, float]) -> str:
    known = [measured[pair.name] for pair in pairs if pair.name in measured]
    return "" if not known else f"{statistics.median(known):.4f}" + (f" ≤ {max(known):.4f}" if len(known) > 1 else "")


def _text(value: str | None) -> str:
    return "–" if value is None else value


def as_json(found: Difference, measured: Mapping[str, float]) -> dict[str, object]:
    """The object of --json; sizes in bytes, `ne` with the row length first, null where a model lacks something."""
    return {
        "a": _model_json(found.first),
        "b": _model_json(found.second),
        "tensors": [
            {"name": pair.name, "a": _tensor_json(pair.first), "b": _tensor_json(pair.second),
             "error": measured.get(pair.name)}
            for pair in found.tensors
        ],
        "metadata": [{"key": key.name, "a": key.first, "b": key.second} for key in found.metadata],
    }  # fmt: skip


def _model_json(model: Model) -> dict[str, object]:
    return {
        "file": str(model.file.path),
        "bytes": model.nbytes,
        "bpw": model.bpw,
        "parameters": model.n_parameters,
        "layers": len(model.layers),
    }


def _tensor_json(tensor: Tensor | None) -> dict[str, object] | None:
    return None if tensor is None else {"type": tensor.type_name, "ne": list(tensor.ne), "bytes": tensor.nbytes}
