"""The numbers layers have in the output: pruning leaves no gaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from surgeon.model.layer_names import BLOCK


@dataclass(frozen=True, slots=True)
class Numbering:
    """layers: number in the input -> number in the output, None when pruned; names: the same for tensor names;
    count: layers left.
    """

    layers: dict[int, int | None]
    names: dict[str, str | None]
    count: int


def number_layers(names: Iterable[tuple[str, int | None]], pruned: frozenset[int], block_count: int = 0) -> Numbering:
    """Number the layers of tensors, given as (name, layer), without those in `pruned`, closing the gaps pruning leaves.

    A name with a layer begins with `blk.<layer>.`. block_count: layers there are even if no tensor belongs to them.
    """
    names = list(names)
    there = {layer for _, layer in names if layer is not None}
    gone = pruned & there
    kept = [layer for layer in sorted(there.union(range(block_count) if gone else ())) if layer not in gone]
    layers: dict[int, int | None] = dict.fromkeys(sorted(there))
    for place, present in enumerate(kept):
        if present in layers:
            layers[present] = place if gone else present
    moved = {old: None if new is None else f"blk.{new}" for old, new in layers.items() if new != old}
    renamed: dict[str, str | None] = {}
    for name, layer in names:
        if layer not in moved:
            renamed[name] = name
        else:
            block = moved[layer]
            renamed[name] = None if block is None else block + name[name.index(".", 4) :]
    return Numbering(layers, renamed, len(kept))


def number_layers_as_seen(names: Iterable[str], pruned: frozenset[int]) -> Numbering:
    """llama-quantize's numbering: in the order in which `names` come, and `v.blk.3.` counts as layer 3 too.

    Layers before the first pruned one keep their number.
    """
    first = min(pruned, default=0)
    layers: dict[int, int | None] = {}
    renamed: dict[str, str | None] = {}
    following = 0
    for name in names:
        match = BLOCK.search(name)
        if match is None:
            renamed[name] = name
            continue
        layer = int(match[1])
        if layer not in layers and layer in pruned:
            layers[layer] = None
        elif layer not in layers:
            number = layer if layer < first else following
            layers[layer], following = number, number + 1
        place = layers[layer]
        renamed[name] = None if place is None else f"{name[: match.start(1)]}{place}{name[match.end(1) :]}"
    return Numbering(layers, renamed, following)
