"""`surgeon stats`: the tables of `llama-imatrix --show-statistics`, to the digit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.parser import Parser
from surgeon.commands.printing.expert_table import NO_EXPERTS, expert_json, expert_table, known_experts
from surgeon.commands.printing.influence_table import influence_json, influence_table
from surgeon.errors import SurgeonError
from surgeon.json_text import json_text
from surgeon.layer_lists import spans
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix
    from surgeon.imatrix.influence import Influence
    from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics

TENSOR_HEAD = (
    " Layer\t       Tensor\t          Σ(Bias)\t  Min\t            Max\t           μ\t   σ\t % Active\tN\t   Entropy"
    "\tE (norm)\tZD\t  CosSim"
)
LAYER_HEAD = "  Layer\t     μΣ(Bias)\t      μZD\tμCosSim"

HELP = """\
columns, over the mean squared activations a of the tensor's n input channels:
  Σ(Bias)          their sum (newer llama.cpp prints the same figure as Σ(Act²))
  Min Max μ σ      of a
  % Active         share of channels above 1e-5
  N                number of channels (of all experts that were chosen at all)
  Entropy, E (norm)  of a as a distribution: bits, and percent of the maximum
  ZD               share of channels more than one σ above μ
  CosSim           cosine similarity to the same tensor of the previous layer

Layer 0 and tensors outside layers have no predecessor, so no CosSim: ignore the 0.0000 that llama-imatrix prints there
(kept in this table and in --json, so that scripts can compare). -nan: one of the two was never active.

Tensors that read the same activations (attn_q, attn_k, attn_v; ffn_gate, ffn_up) have equal rows; they are listed
below the table.

--experts, one line per layer that has some: experts no token was routed to; the least and the most called one's share
of the calls; the share of the router's weight that the least salient quarter gets; saliency, the mean over an expert's
tokens of weight × |output| (REAP), collected by surgeon imatrix; the experts that add least.

The statistics rank, they do not measure damage: measure before you trust a ranking.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon stats",
        description="Statistics of an importance matrix (GGUF or .dat), as llama-imatrix --show-statistics.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("imatrix", metavar="IMATRIX", type=Path)
    parser.add_argument("--layers", action="store_true", help="the table of layers instead of the one of tensors")
    parser.add_argument("--experts", action="store_true", help="what is known of every layer's experts instead")
    parser.add_argument("--json", action="store_true", help="both tables in full precision (NaN is null)")
    options = parser.parse_args(arguments)

    from surgeon.imatrix.files import load_imatrix
    from surgeon.imatrix.influence import load_influence
    from surgeon.imatrix.statistics import layer_statistics, tensor_statistics

    imatrix = load_imatrix(options.imatrix, judged=True)
    tell((f"surgeon: warning: {imatrix.path}: {why}; left out" for why in imatrix.bad.values()), sys.stderr)
    influence = load_influence(options.imatrix)
    if options.experts:
        return _print_experts(imatrix, influence, as_json=options.json)
    rows = tensor_statistics(imatrix)
    layers = layer_statistics(rows)
    if options.json:
        print(as_json(imatrix, rows, layers, influence))
    else:
        tell(layer_table(layers) if options.layers else tensor_table(imatrix, rows))
        if options.layers and influence is not None:
            print(f"Collected by surgeon imatrix in the same pass:\n\n{influence_table(influence)}\n")
    return 0


def _print_experts(imatrix: Imatrix, influence: Influence | None, *, as_json: bool) -> int:
    sums = known_experts(imatrix, influence.experts if influence is not None else None)
    if sums is None:
        raise SurgeonError(f"{imatrix.path}: {NO_EXPERTS}")
    if as_json:
        print(json_text({"file": str(imatrix.path), "experts": expert_json(sums)}))
    else:
        print(expert_table(sums))
    return 0


def tensor_table(imatrix: Imatrix, rows: list[TensorStatistics]) -> Iterator[str]:
    """The lines of the tensor table, with what shares its input below."""
    yield ""
    yield f"Computing statistics for {imatrix.path} ({len(rows)} tensors)"
    yield ""
    yield TENSOR_HEAD
    yield "=" * 169
    yield from map(tensor_line, rows)
    yield ""
    yield from expert_lines(imatrix)
    notes = list(shared_lines(imatrix))
    if notes:
        yield "These read the same activations, so their rows are equal:"
        yield from notes
    if any(row.cossim is None for row in rows):
        yield "Ignore CosSim 0.0000 where there is no previous layer, or none with that tensor."
    yield ""


def expert_lines(imatrix: Imatrix) -> Iterator[str]:
    """Where experts were never called in calibration: `  blk.1.ffn_down_exps.weight: 6 of 8 experts have data`."""
    from surgeon.imatrix.coverage import experts_with_data

    found = experts_with_data(imatrix)
    lines = [f"  {name}: {seen} of {n} experts have data" for name, (seen, n) in found.items() if seen < n]
    if lines:
        yield "Experts that were never called in calibration, of which nothing is known:"
        yield from lines
        yield ""
    elif found:
        yield f"All experts of the {len(found)} expert tensors have data."
        yield ""


def layer_table(layers: list[LayerStatistics]) -> Iterator[str]:
    yield ""
    yield f"Computing weighted average statistics per layer ({len(layers)} layers)"
    yield ""
    yield LAYER_HEAD
    yield "=" * 48
    yield from map(layer_line, layers)
    yield ""


def tensor_line(row: TensorStatistics) -> str:
    layer = "-" if row.layer is None else row.layer
    return (
        f"{layer:>5}\t{row.tensor:<20}\t{row.sum_bias:10.2f}\t{row.min:8.4f}\t{row.max:11.4f}\t{row.mean:6.2f}"
        f"\t{row.std:6.2f}\t{_percent(row.active):8.2f}%\t{row.n:6d}\t{row.entropy:10.4f}\t{row.entropy_norm:6.2f}%"
        f"\t{_percent(row.zd):10.2f}%\t{_cosine(row.cossim, 8)}"
    )


def layer_line(row: LayerStatistics) -> str:
    return f"{row.layer:>5}\t{row.sum_bias:14.2f}\t{_percent(row.zd):10.4f}%\t{_cosine(row.cossim, 6)}"


def _percent(share: float) -> float:
    """100 × share, rounded to float32 as llama-imatrix does before it prints."""
    import numpy as np

    return float(np.float32(100) * np.float32(share))


def _cosine(value: float | None, width: int) -> str:
    if value is None:
        value = 0.0
    return f"{'-nan' if value != value else f'{value:.4f}':>{width}}"


def shared_lines(imatrix: Imatrix) -> Iterator[str]:
    """`  attn_k = attn_q = attn_v (layers 0-11)`, one line per group of kinds."""
    from surgeon.imatrix.statistics import shared_inputs, split_name

    kinds: dict[tuple[str, ...], set[int]] = {}
    for name, others in shared_inputs(imatrix).items():
        group = tuple(sorted(split_name(member)[1] for member in (name, *others)))
        layer = split_name(name)[0]
        kinds.setdefault(group, set()).update(() if layer is None else (layer,))
    for group, layers in sorted(kinds.items()):
        where = f" (layer{'s' if len(layers) > 1 else ''} {spans(layers)})" if layers else ""
        yield f"  {' = '.join(group)}{where}"


def as_json(
    imatrix: Imatrix,
    rows: Iterable[TensorStatistics],
    layers: Iterable[LayerStatistics],
    influence: Influence | None = None,
) -> str:
    """The object of --json: `tensors` and `layers` with llama-imatrix's figures, `shared_inputs` as lists of names.

    `influence` has the scores of the layers that only `surgeon imatrix` collects, where the file holds them.

    Figures are the shortest decimals that read back as the same float32, null for NaN and infinity; CosSim without a
    predecessor is 0.0, as llama-imatrix has it.
    """
    from surgeon.imatrix.coverage import experts_with_data
    from surgeon.imatrix.statistics import shared_inputs

    experts = experts_with_data(imatrix)
    groups = {tuple(sorted((name, *others))) for name, others in shared_inputs(imatrix).items()}
    return json_text(
        {
            "tensors": [tensor_json(row) for row in rows],
            "layers": [layer_json(row) for row in layers],
            "experts": {name: {"with_data": seen, "experts": n} for name, (seen, n) in experts.items()},
            "bad_entries": imatrix.bad,
            "shared_inputs": sorted(map(list, groups)),
            **({} if influence is None else {"influence": influence_json(influence)}),
        },
        indent=1,
    )


def tensor_json(row: TensorStatistics) -> dict[str, object]:
    return {
        "tensor": row.name,
        "layer": "-" if row.layer is None else str(row.layer),
        "name": row.tensor,
        "sum": exact(row.sum_bias),
        "min": exact(row.min),
        "max": exact(row.max),
        "mean": exact(row.mean),
        "stddev": exact(row.std),
        "active": exact(row.active),
        "n": row.n,
        "entropy": exact(row.entropy),
        "entropy_norm": exact(row.entropy_norm),
        "zd": exact(row.zd),
        "cossim": 0.0 if row.cossim is None else exact(row.cossim),
    }


def layer_json(row: LayerStatistics) -> dict[str, object]:
    cossim = 0.0 if row.cossim is None else exact(row.cossim)
    return {"layer": row.layer, "sum": exact(row.sum_bias), "zd": exact(row.zd), "cossim": cossim}


def exact(value: float) -> float | None:
    """The shortest decimal that reads back as the same float32; None for NaN and infinity."""
    import numpy as np

    return float(str(np.float32(value))) if np.isfinite(value) else None
