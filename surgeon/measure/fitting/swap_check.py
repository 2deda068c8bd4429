"""The swap check at the end of a fit: is it better than llama-quantize's mix, measured and not predicted?

Where the mix is nearly the best there is, the gain predicted is smaller than predictions are exact, and a fit can be
the worse one. There both are probed on the calibration text, and the mix's types are taken unless the fit wins.
"""

from __future__ import annotations

from collections.abc import Generator

from surgeon.fit.allocation import Allocator, Fit, Mixed
from surgeon.measure.probing import Prober, Text, measured_plans
from surgeon.measure.progress import Standing

# On three models no fit was worse whose predicted divergence is below this part of the mix's.
_CLEAR = 0.85
_GAIN = 0.98  # less than that of the mix's measured divergence is a gain; the rest is noise of the tokens


def checked(
    prober: Prober, text: Text, allocator: Allocator, fit: Fit, mix: Mixed | None
) -> Generator[Standing, None, Fit]:
    """`fit`, or the types of `mix` as a fit where they measure better; mix: the best that has no more bytes.

    text: what the sensitivities were measured on. Raises as `Prober.probe`.
    """
    rival = allocator.as_mix(mix) if mix is not None and fit.predicted.kld > _CLEAR * mix.predicted.kld else None
    if rival is None:
        return fit
    found = yield from measured_plans(prober, text, {"fit": fit.resolution, "mix": rival.resolution})
    return fit if found["fit"]["mean_kld"] < _GAIN * found["mix"]["mean_kld"] else rival
