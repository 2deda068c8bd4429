"""Where sums of second moments come from, beside their files: the engine's child, or a file with other layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import numpy as np

from surgeon.engine.raw_moments import RawMoments, panels
from surgeon.model.layer_names import with_layer
from surgeon.moments.moments import Input, Moments
from surgeon.moments.triangle import Float32, spans_of

NONE_PRUNED: Mapping[str, tuple[tuple[tuple[int, int], ...], int]] = MappingProxyType({})


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
    """Second moments as pruning leaves them: layers renamed old -> new, those that are not in `mapping` left out.

    experts: weight -> (half-open ranges that stay, matrices there were), for the inputs that experts have of their own.
    """

    def __init__(
        self,
        moments: Moments,
        mapping: Mapping[int, int],
        experts: Mapping[str, tuple[tuple[tuple[int, int], ...], int]] = NONE_PRUNED,
    ) -> None:
        self._moments = moments
        names = {name: with_layer(name, mapping) for name in {*moments.users, *moments.inputs}}
        self._old = {new: old for old, new in names.items() if new is not None}
        self._names = names
        self._kept: dict[str, list[int]] = {}  # input -> its matrices that stay
        for weight, (ranges, count) in experts.items():
            one = moments.of(weight)
            if one is not None and one.matrices == count:
                self._kept[one.name] = [number for start, end in ranges for number in range(start, end)]

    @cached_property
    def inputs(self) -> dict[str, Input]:
        found = {}
        for old, one in self._moments.inputs.items():
            new = self._names[old]
            if new is not None:
                tokens = one.tokens[self._kept[old]] if old in self._kept else one.tokens
                found[new] = Input(new, one.columns, len(tokens), tokens)
        return found

    @cached_property
    def users(self) -> dict[str, str]:
        pairs = ((self._names[weight], self._names[name]) for weight, name in self._moments.users.items())
        return {weight: name for weight, name in pairs if weight is not None and name is not None}

    def sums(self, one: Input, matrix: int, half: int) -> list[Float32]:
        old = self._old[one.name]
        return self._moments.sums(
            self._moments.inputs[old], self._kept[old][matrix] if old in self._kept else matrix, half
        )
