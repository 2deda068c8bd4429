"""The numbers layers have in the output: pruning leaves no gaps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LEADING = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Numbering:
    """layers: number in the input -> number in the output, None when pruned; names: the same for tensor names;
    count: layers left.
    """

    layers: dict[int, int | None]
    names: dict[str, str | None]
    count: int


def number_layers(names: Iterable[str], pruned: frozenset[int], *, anywhere: bool = False) -> Numbering:
    """Number the layers of the tensors `names` (in output order) without those in `pruned`.

    Layers before the first pruned one keep their number; the others are numbered in the order they appear. A layer is a
    leading `blk.<n>.`; with `anywhere` (llama-quantize's way) `v.blk.3.` counts as layer 3 too.
    """
    find = _LEADING.search if anywhere else _LEADING.match
    first = min(pruned, default=0)
    layers: dict[int, int | None] = {}
    renamed: dict[str, str | None] = {}
    following = 0
    for name in names:
        match = find(name)
        if match is None:
            renamed[name] = name
            continue
        layer = int(match[1])
        if layer not in layers:
            if layer in pruned:
                layers[layer] = None
            else:
                layers[layer] = layer if not pruned or layer < first else following
                following = (layers[layer] or 0) + 1
        number = layers[layer]
        renamed[name] = None if number is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
    return Numbering(layers, renamed, following)
