"""What `surgeon expert-scan` measured of this model: KL divergence by the share of experts pruned, and by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from surgeon.plan.plan import expert_sets_id
from surgeon.session.kept_scans import OF_ANOTHER_VERSION, kept_scans

_EVERY_LAYER = -1


@dataclass(frozen=True, slots=True)
class ScanPoint:
    """share: of the experts silenced, in percent; layer: the one they are of, None for every layer; by: what ranked
    them; kld, error, ppl, same_top: as measured; key: that of the sets of experts.
    """

    share: float
    layer: int | None
    by: str
    kld: float
    error: float
    ppl: float
    same_top: float
    key: str


@dataclass(frozen=True, slots=True)
class ExpertCurve:
    points: tuple[ScanPoint, ...] = ()

    def of(self, by: str) -> list[ScanPoint]:
        """Every layer at once, by ascending share."""
        return sorted((p for p in self.points if p.layer is None and p.by == by), key=lambda point: point.share)

    @property
    def by(self) -> list[str]:
        """What ranked the experts in the curves there are, saliency first."""
        return sorted({point.by for point in self.points if point.layer is None}, reverse=True)

    def alone(self) -> dict[int, ScanPoint]:
        """Layers silenced alone, the most salient share measured last winning."""
        return {point.layer: point for point in self.points if point.layer is not None}

    def measured(self, sets: Mapping[int, Iterable[int]]) -> ScanPoint | None:
        """The point at which exactly these experts were silenced."""
        key = expert_sets_id(sets)
        return next((point for point in self.points if point.key == key), None)


def last_curve(folder: Path, identity: str) -> ExpertCurve:
    """The newest scan of the model in `folder`; empty where there is none to read."""
    for kept in kept_scans(folder, identity):
        points: tuple[ScanPoint, ...] = ()
        with suppress(*OF_ANOTHER_VERSION):
            damages = kept["damages"]
            points = tuple(
                _point(damages[key], str(key), float(share), int(layer), str(by))
                for key, share, layer, by in kept["cuts"]
                if key in damages
            )
        if points:
            return ExpertCurve(points)
    return ExpertCurve()


def _point(damage: Mapping[str, float], key: str, share: float, layer: int, by: str) -> ScanPoint:
    kld, error, ppl, same_top = (float(damage[name]) for name in ("mean_kld", "mean_kld_error", "ppl", "same_top"))
    return ScanPoint(share, None if layer == _EVERY_LAYER else layer, by, kld, error, ppl, same_top, key)
