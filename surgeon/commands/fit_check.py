"""A fit with its swap check, for the commands that make fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgeon.fit.allocation import Allocator, Fit, Mixed
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.progress import Standing


def checked_fit(
    sensitivities: Sensitivities, allocator: Allocator, nbytes: int, option: str
) -> tuple[Fit, Mixed | None]:
    """The choice within `nbytes`, and the mix that it was compared with. Raises as `Allocator.fit` and probes do."""
    from surgeon.commands.printing.progress_line import StandingLine
    from surgeon.measure.fitting.swap_check import checked

    fit, mix = allocator.fit(nbytes, option), allocator.mix_within(nbytes)
    found = [fit]

    def standings() -> Iterator[Standing]:
        found.append((yield from checked(sensitivities.prober, sensitivities.text, allocator, fit, mix)))

    for _ in StandingLine().watch(standings()):
        pass
    return found[-1], mix
