"""Where sums of second moments come from, beside their files: the engine's child, or a file with other layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from surgeon.engine.raw_moments import RawMoments, panels
from surgeon.model.layer_names import with_layer
from surgeon.moments.moments import Input, Moments
from surgeon.moments.triangle import Float32, spans_of


class Collected:
    """What the engine's child has collected."""

    def __init__(self, raw: RawMoments) -> None:
        self._raw = raw

    @cached_property
    def inputs(self) -> dict[str, Input]:
        return {
            one.weight: Input(one.weight, one.columns, one.matrices, np.array(one.tokens, np.int64))
            for one in self._raw.contents.inputs
        }

    @cached_property
    def users(self) -> dict[str, str]:
        return {user: one.weight for one in self._raw.contents.inputs for user in one.users}

    def sums(self, one: Input, matrix: int, half: int) -> list[Float32]:
        """The blocks along the diagonal; their lower triangles are zero."""
        block = self._raw.contents.block
        raw = next(found for found in self._raw.contents.inputs if found.weight == one.name)
        blocks = [np.zeros((stop - start, stop - start), np.float32) for start, stop in spans_of(one.columns, block)]
        places = zip(panels(one.columns, block), self._raw.panels(raw, matrix, half), strict=True)
        for (first, end, last), panel in places:
            number = first // block if block else 0
            start = number * block
            blocks[number][first - start : end - start, first - start : last - start] = panel
        return blocks


class Renumbered:
    """Second moments with their layers renamed old -> new; those of layers that are not in `mapping` are left out."""

    def __init__(self, moments: Moments, mapping: Mapping[int, int]) -> None:
        self._moments = moments
        names = {name: with_layer(name, mapping) for name in {*moments.users, *moments.inputs}}
        self._old = {new: old for old, new in names.items() if new is not None}
        self._names = names

    @cached_property
    def inputs(self) -> dict[str, Input]:
        found = {}
        for old, one in self._moments.inputs.items():
            new = self._names[old]
            if new is not None:
                found[new] = Input(new, one.columns, one.matrices, one.tokens)
        return found

    @cached_property
    def users(self) -> dict[str, str]:
        pairs = ((self._names[weight], self._names[name]) for weight, name in self._moments.users.items())
        return {weight: name for weight, name in pairs if weight is not None and name is not None}

    def sums(self, one: Input, matrix: int, half: int) -> list[Float32]:
        return self._moments.sums(self._moments.inputs[self._old[one.name]], matrix, half)
