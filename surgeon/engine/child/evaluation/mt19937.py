"""The random choices of llama-perplexity's tasks: the Mersenne twister seeded with 1, drawn from as libstdc++ does.

numpy's MT19937 is the same generator; only its legacy seeding equals that of `std::mt19937(seed)`.
"""

from __future__ import annotations

import numpy as np


class Mt19937:
    """`std::mt19937(seed)`."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed)

    def next(self) -> int:
        """The next 32 bits."""
        return int(self._bits.random_raw())

    def uniform(self, count: int) -> int:
        """`std::uniform_int_distribution<size_t>(0, count − 1)` of libstdc++ since GCC 11 (Lemire's multiplication)."""
        if not 0 < count < 1 << 32:
            raise ValueError(f"{count} choices")
        product = self.next() * count
        if (product & 0xFFFFFFFF) < count:
            threshold = (1 << 32) % count
            while (product & 0xFFFFFFFF) < threshold:
                product = self.next() * count
        return product >> 32


def shuffled(count: int, total: int) -> list[int]:
    """`count` of `total` numbers as HellaSwag's tasks are drawn: each taken out of the list that is left."""
    generator = Mt19937(1)
    left = list(range(total))
    return [left.pop(generator.uniform(len(left))) for _ in range(min(count, total))]


def sampled(count: int, total: int) -> list[int]:
    """`count` of `total` as WinoGrande and multiple choice draw them, in float32; in order where all are wanted."""
    if count <= 0 or count >= total:
        return list(range(total))
    generator = Mt19937(1)
    scale = np.float32(1) / (np.float32(1) + np.float32(0xFFFFFFFF))
    left = list(range(total))
    chosen = []
    for _ in range(count):
        index = int(scale * np.float32(generator.next()) * np.float32(len(left)))
        chosen.append(left[index])
        left[index] = left[-1]
        left.pop()
    return chosen
