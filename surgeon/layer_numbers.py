"""The numbers layers have in the output: pruning leaves no gaps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_BLOCK = re.compile(r"blk\.([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Numbering:
    """layers: number in the input -> number in the output, None when pruned; names: the same for tensor names;
    count: layers left.
    """

    layers: dict[int, int | None]
    names: dict[str, str | None]
    count: int


def number_layers(names: Iterable[str], pruned: frozenset[int], block_count: int = 0) -> Numbering:
    """Number the layers of the tensors `names` without those in `pruned`, closing the gaps pruning leaves.

    Only a leading `blk.<n>.` is a layer. block_count: layers there are even if no tensor tells of them.
    """
    names = list(names)
    found = {name: match for name in names if (match := _BLOCK.match(name))}
    there = {int(match[1]) for match in found.values()}
    kept = [layer for layer in sorted(there.union(range(block_count) if pruned & there else ())) if layer not in pruned]
    new = {layer: layer for layer in kept} if not pruned & there else {layer: n for n, layer in enumerate(kept)}
    renamed = {
        name: _renamed(name, found[name], new.get(int(found[name][1]))) if name in found else name for name in names
    }
    return Numbering({layer: new.get(layer) for layer in sorted(there)}, renamed, len(kept))


def number_layers_as_seen(names: Iterable[str], pruned: frozenset[int]) -> Numbering:
    """llama-quantize's numbering: in the order in which `names` come, and `v.blk.3.` counts as layer 3 too.

    Layers before the first pruned one keep their number.
    """
    first = min(pruned, default=0)
    layers: dict[int, int | None] = {}
    renamed: dict[str, str | None] = {}
    following = 0
    for name in names:
        match = _BLOCK.search(name)
        if match is None:
            renamed[name] = name
            continue
        layer = int(match[1])
        if layer not in layers and layer in pruned:
            layers[layer] = None
        elif layer not in layers:
            number = layer if layer < first else following
            layers[layer], following = number, number + 1
        renamed[name] = _renamed(name, match, layers[layer])
    return Numbering(layers, renamed, following)


def _renamed(name: str, match: re.Match[str], number: int | None) -> str | None:
    return None if number is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
