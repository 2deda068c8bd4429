"""The statistics a row can show: where each value comes from, how it is written and what its bar is scaled to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from surgeon import figures
from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics


@dataclass(frozen=True)
class Metric:
    """key: in filters and the config file; of_tensor, of_layer: the attribute that holds it (layers have few);
    logarithmic: bars are scaled by order of magnitude, for values that span several; layers_only: not from the
    statistics of tensors, but measured on whole layers."""

    key: str
    title: str
    help: str
    attribute: str
    on_layers: bool = False
    logarithmic: bool = False
    percent: bool = False
    layers_only: bool = False

    def text(self, value: float | None) -> str:
        if value is None:
            return "–"
        if self.percent:
            return f"{100 * value:.1f}%"
        if self.key in ("cos", "bi", "lim", "kld"):
            return f"{value:.4f}"
        if self.key == "n":
            return str(int(value))
        return figures.figure(value)


def _of_layers(key: str, title: str, help_: str, *, logarithmic: bool = False, percent: bool = False) -> Metric:
    return Metric(key, title, help_, "", True, logarithmic, percent, layers_only=True)


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "sum", "Σ(Bias)", "sum of the mean squared activations, Σ(Act²) in newer llama.cpp", "sum_bias", True, True
        ),
        Metric("h", "H", "entropy of the activations' distribution over the channels, bits", "entropy"),
        Metric("cos", "CosSim", "cosine similarity to the same tensor of the previous layer", "cossim", True),
        Metric("zd", "ZD", "share of channels more than one σ above the mean", "zd", True, percent=True),
        Metric("en", "E norm", "entropy as a share of the highest possible", "entropy_norm", percent=True),
        Metric("active", "active", "share of channels whose mean square exceeds 1e-5", "active", percent=True),
        Metric("min", "min", "smallest mean squared activation", "min", logarithmic=True),
        Metric("max", "max", "largest mean squared activation", "max", logarithmic=True),
        Metric("mean", "μ", "mean of the mean squared activations", "mean", logarithmic=True),
        Metric("std", "σ", "their standard deviation", "std", logarithmic=True),
        Metric("n", "N", "number of channels", "n"),
        _of_layers("kld", "KLD", "KL divergence measured with the layer left out: S measures it", logarithmic=True),
        _of_layers("bi", "BI", "block influence: 1 − cosine of the stream before and after", logarithmic=True),
        _of_layers("lim", "LIM", "layer-input modification: −cosine, over all tokens as one vector"),
        _of_layers("wzd", "wZD", "share of the layer's weights with a z-score above 1", percent=True),
    )
}


@dataclass
class Measurements:
    """Statistics by tensor name and layer number, with the scale of every metric's bar.

    The scale of a tensor's bar is the range of the same tensor over the layers, that of a layer's bar the range over
    the layers: comparing along the model is what bars are for.
    """

    tensors: Mapping[str, TensorStatistics] = field(default_factory=dict)
    layers: Mapping[int, LayerStatistics] = field(default_factory=dict)
    of_layers: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    _scales: dict[tuple[str, str], tuple[float, float] | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Iterable[TensorStatistics],
        layers: Iterable[LayerStatistics],
        of_layers: Mapping[str, Mapping[int, float]] | None = None,
    ) -> Measurements:
        """of_layers: the figures of `layers_only` metrics, by metric key and layer number."""
        return cls({row.name: row for row in rows}, {row.layer: row for row in layers}, of_layers or {})

    def known(self, metric: Metric) -> bool:
        """Whether a `layers_only` metric was measured; the others have their place in any case."""
        return not metric.layers_only or bool(self.of_layers.get(metric.key))

    def forget_scales(self) -> None:
        """After figures of layers have come in."""
        self._scales.clear()

    def of_tensor(self, metric: Metric, name: str) -> float | None:
        row = self.tensors.get(name)
        return None if row is None or metric.layers_only else value_of(metric, row)

    def of_layer(self, metric: Metric, layer: int) -> float | None:
        if metric.layers_only:
            return self.of_layers.get(metric.key, {}).get(layer)
        row = self.layers.get(layer) if metric.on_layers else None
        return None if row is None else value_of(metric, row)

    def curve(self, metric: Metric, short: str | None, layers: Iterable[int]) -> list[float | None]:
        """The metric over the layers: of the tensor called `short` (`ffn_down`), or of whole layers for None."""
        if short is None or metric.layers_only:
            return [self.of_layer(metric, layer) for layer in layers]
        by_layer = {row.layer: row for row in self.tensors.values() if row.tensor == short and row.layer is not None}
        return [value_of(metric, by_layer[layer]) if layer in by_layer else None for layer in layers]

    def fraction(self, metric: Metric, short: str | None, value: float | None) -> float | None:
        """Where `value` lies in the range of its kind, 0-1."""
        if value is None:
            return None
        key = (metric.key, short or "")
        if key not in self._scales:
            self._scales[key] = scale_of(metric, self._population(metric, short))
        return place(metric, self._scales[key], value)

    def _population(self, metric: Metric, short: str | None) -> list[float | None]:
        if short is None or metric.layers_only:
            return [self.of_layer(metric, layer) for layer in self.of_layers.get(metric.key, self.layers)]
        return [value_of(metric, row) for row in self.tensors.values() if row.tensor == short]


def scale_of(metric: Metric, values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [_stretch(metric, value) for value in values if value is not None]
    return (min(known), max(known)) if known else None


def place(metric: Metric, scale: tuple[float, float] | None, value: float) -> float | None:
    """Where `value` lies on the scale, 0-1; None when all values are the same, so that there is nothing to compare."""
    if scale is None or scale[1] <= scale[0]:
        return None
    return (_stretch(metric, value) - scale[0]) / (scale[1] - scale[0])


def curve_fractions(metric: Metric, values: list[float | None]) -> list[float | None]:
    """A curve as fractions of its own range."""
    scale = scale_of(metric, values)
    return [None if value is None else place(metric, scale, value) for value in values]


def _stretch(metric: Metric, value: float) -> float:
    return math.log10(max(value, 1e-12)) if metric.logarithmic else value


def value_of(metric: Metric, row: TensorStatistics | LayerStatistics) -> float | None:
    """The value in `row`, shares as 0-1; None where there is none (layer 0 has no CosSim) or it is not a number."""
    value: float | None = getattr(row, metric.attribute)
    if value is None or not math.isfinite(value):
        return None
    return value / 100 if metric.key == "en" else value
