"""Which layers to prune: the sets that are measured one after the other, and the choice they lead to.

single   the layers that do least damage alone
greedy   one after the other, each measured together with those chosen before
pairs    two neighbours at a time, the last one alone where the count is odd
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from surgeon.engine.protocol import Message
from surgeon.measure.scans.prune_scan import PruneScan

ORDERS = ("single", "greedy", "pairs")
Chosen = tuple[int, ...]


def candidates(order: str, chosen: Chosen, count: int, n_layer: int) -> list[list[int]]:
    """The sets that may follow `chosen`."""
    free = [layer for layer in range(n_layer) if layer not in chosen]
    added: list[Chosen]
    if order == "pairs" and count - len(chosen) > 1:
        added = [(layer, layer + 1) for layer in free if layer + 1 in free]
    else:
        added = [(layer,) for layer in free]
    return [sorted((*chosen, *layers)) for layers in added]


class PruneChoice:
    """Chooses `count` layers in this order; `chosen` grows while `messages` is read. among: of how many layers, those
    that do least damage alone (0: of all).
    """

    def __init__(self, scan: PruneScan, order: str, count: int, n_layer: int, among: int = 0) -> None:
        self.scan, self._order, self._count = scan, order, count
        self._n_layer, self._among = n_layer, among
        self.chosen: Chosen = ()
        self.round = 0  # of the scans, from 0

    @property
    def rounds(self) -> int:
        """How many scans there will be, one after the other."""
        if self._order == "single":
            return 2
        chosen_at_once = 2 if self._order == "pairs" else 1
        return -(-self._count // chosen_at_once) + bool(self._among)

    @property
    def damage(self) -> float:
        """KL divergence of the chosen set, nan where it was not measured (`single`)."""
        found = self.scan.damages.get(self.chosen)
        return float("nan") if found is None else found.mean_kld

    def messages(self) -> Iterator[Message]:
        """The engine's messages of all scans. Raises as PruneScan does."""
        if self._order == "single" or self._among:
            yield from self._measured([[layer] for layer in range(self._n_layer)])
        if self._order == "single":
            self.chosen = tuple(sorted(self._best_alone(self._count)))
            yield from self._measured([list(self.chosen)])
            return
        while len(self.chosen) < self._count:
            sets = candidates(self._order, self.chosen, self._count, self._n_layer)
            if self._among:
                sets = [layers for layers in sets if set(layers) <= {*self._best_alone(self._among), *self.chosen}]
            if not sets:
                return
            yield from self._measured(sets)
            self.chosen = min(map(tuple, sets), key=lambda layers: self.scan.damages[layers].mean_kld)

    def _best_alone(self, count: int) -> list[int]:
        alone = {layers[0]: one.mean_kld for layers, one in self.scan.damages.items() if len(layers) == 1}
        return sorted(alone, key=alone.__getitem__)[:count]

    def _measured(self, sets: list[list[int]]) -> Iterator[Message]:
        self.scan.job = replace(self.scan.job, layer_sets=sets)
        yield from self.scan.messages()
        self.round += 1
