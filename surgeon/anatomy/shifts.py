"""Which layers would change their role, and which neighbours to prune so that none does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from surgeon.anatomy.roles import Metadata, Periodic, Role
from surgeon.layer_lists import spans

# Longer windows than this are no advice any more.
_LONGEST_WINDOW = 64
_LONGEST_LIST = 6


def shifted(role: Role, before: Metadata, after: Metadata, kept: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Layer of the input -> (role there, role in the output) for the kept layers whose role is not the same."""
    old, new = role.of(before), role.of(after)
    return {
        layer: (old[layer], new[number])
        for number, layer in enumerate(kept)
        if layer < len(old) and number < len(new) and old[layer] != new[number]
    }


def describe(changes: dict[int, tuple[str, str]]) -> str:
    """`global → local: 29, 35; local → global: 30, 36`, in the input's numbers."""
    groups: dict[tuple[str, str], list[int]] = {}
    for layer, words in changes.items():
        groups.setdefault(words, []).append(layer)
    return "; ".join(
        f"{old or 'ordinary'} → {new or 'ordinary'}: {spans(layers, _LONGEST_LIST)}"
        for (old, new), layers in groups.items()
    )


def neighbours(
    roles: Sequence[Role], before: Metadata, pruned: frozenset[int], shifts: Callable[[frozenset[int]], bool]
) -> list[frozenset[int]]:
    """Up to two larger sets around `pruned` that leave every role in place: whole periods, downwards and upwards.

    shifts: whether pruning a set would still change a role.
    """
    lengths = [role.length(before) for role in roles if isinstance(role, Periodic)]
    window = math.lcm(*[length for length in lengths if length]) if lengths else 0
    if not 0 < window <= _LONGEST_WINDOW:
        return []
    found = []
    for starts in (range(window), range(window - 1, -1, -1)):
        widened = _whole_windows(before.trunk, pruned, window, list(starts))
        if widened and widened not in found and len(widened) < before.trunk and not shifts(widened):
            found.append(widened)
    return found


def _whole_windows(layers: int, pruned: frozenset[int], window: int, starts: Sequence[int]) -> frozenset[int]:
    """A window of layers around each pruned one, holding as many other pruned ones as possible.

    starts: places in the window at which to try the pruned layer, the preferred first. Empty when none fits.
    """
    widened: set[int] = set()
    for layer in sorted(pruned):
        if layer in widened:
            continue
        windows = [
            range(layer - place, layer - place + window)
            for place in starts
            if layer >= place and layer - place + window <= layers
        ]
        free = [candidate for candidate in windows if not widened.intersection(candidate)]
        if not free:
            return frozenset()
        widened.update(max(free, key=lambda candidate: len(pruned.intersection(candidate))))
    return frozenset(widened)
