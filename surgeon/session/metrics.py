"""The statistics a row can show: one row of METRICS adds a column with its heading, bar, sort, filter word and help.

A row says where the value comes from: an attribute of the imatrix statistics, or figures that were measured and are
kept under the metric's key (`Measurements.of_tensors`, `of_layers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from surgeon import figures
from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics, split_name


@dataclass(frozen=True)
class Place:
    """A column of the tree. rank: the lower, the longer it stays when space gets scarce; bar: cells of the bar beside
    the number (0: none); shown: among the columns nobody chose."""

    width: int
    rank: int
    bar: int = 1
    shown: bool = False


@dataclass(frozen=True)
class Metric:
    """key: in filters and the config file; aliases: other words for it there; attribute: of the statistics' rows, empty
    for figures kept by key; of: which rows have it; logarithmic: bars are scaled by order of magnitude, for values that
    span several; factor: what makes the stored value what is shown and filtered;
    form: "%", a format, or empty for the figures of statistics."""

    key: str
    title: str
    help: str
    place: Place
    attribute: str = ""
    of: Literal["tensors", "layers", "both"] = "tensors"
    logarithmic: bool = False
    factor: float = 1.0
    form: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def on_layers(self) -> bool:
        return self.of != "tensors"

    @property
    def layers_only(self) -> bool:
        return self.of == "layers"

    def text(self, value: float | None) -> str:
        if value is None:
            return "–"
        if self.form == "%":
            return f"{100 * value:.1f}%"
        return format(value, self.form) if self.form else figures.figure(value)


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("sum", "Σ(Bias)", "sum of mean squared activations; newer llama.cpp: Σ(Act²)",
               Place(7, 3, shown=True), "sum_bias", of="both", logarithmic=True, aliases=("bias",)),
        Metric("h", "H", "entropy of the activations over the channels, in bits",
               Place(5, 4, shown=True), "entropy", aliases=("entropy",)),
        Metric("cos", "CosSim", "cosine similarity to the same tensor of the previous layer",
               Place(6, 2, bar=4, shown=True), "cossim", of="both", form=".4f", aliases=("cossim",)),
        Metric("kld", "KLD", "KL divergence with the layer left out (S); high: matters",
               Place(6, 2, shown=True), logarithmic=True, form=".4f", of="layers"),
        Metric("bi", "BI", "block influence: 1 − cosine of the stream before and after",
               Place(6, 5, shown=True), logarithmic=True, form=".4f", of="layers"),
        Metric("zd", "ZD", "share of channels more than one σ above the mean",
               Place(6, 7, shown=True), "zd", of="both", form="%"),
        Metric("active", "active", "share of channels whose mean square exceeds 1e-5",
               Place(6, 9, shown=True), "active", form="%"),
        Metric("err", "error", "relative error of the type that the plan gives (F measures)",
               Place(6, 13, bar=0), form=".4f", aliases=("error",)),
        Metric("pkld", "pKLD", "share of the predicted KL divergence (F measures)",
               Place(7, 14, bar=0), form=".5f", aliases=("predicted",)),
        Metric("fragile", "fragile", "KLD per million weights of its kind there, at Q2_K (F)",
               Place(7, 17, bar=0), form=".5f", logarithmic=True, aliases=("fragility",)),
        Metric("lim", "LIM", "layer-input modification: −cosine over all tokens",
               Place(7, 23), form=".4f", of="layers"),
        Metric("wzd", "wZD", "share of the layer's weights with a z-score above 1",
               Place(6, 24), form="%", of="layers"),
        Metric("idle", "idle", "experts of the layer that no token was routed to",
               Place(5, 15, bar=0), form=".0f", of="layers"),
        Metric("low", "low 25%", "router's weight on the least salient quarter of experts",
               Place(7, 16), form="%", of="layers"),
        Metric("en", "E norm", "entropy as a share of the highest possible",
               Place(6, 10), "entropy_norm", factor=0.01, form="%"),
        Metric("min", "min", "smallest mean squared activation", Place(8, 21), "min", logarithmic=True),
        Metric("max", "max", "largest mean squared activation", Place(8, 11), "max", logarithmic=True),
        Metric("mean", "μ", "mean of the mean squared activations", Place(8, 12), "mean", logarithmic=True),
        Metric("std", "σ", "their standard deviation", Place(8, 13), "std", logarithmic=True),
        Metric("n", "N", "number of channels", Place(6, 22, bar=0), "n", form=".0f"),
    )
}  # fmt: skip
ALIASES: dict[str, str] = {alias: metric.key for metric in METRICS.values() for alias in metric.aliases}


@dataclass
class Measurements:
    """Statistics by tensor name and layer number, with the scale of every metric's bar.

    The scale of a tensor's bar is the range of the same tensor over the layers, that of a layer's bar the range over
    the layers: comparing along the model is what bars are for.
    """

    tensors: Mapping[str, TensorStatistics] = field(default_factory=dict)
    layers: Mapping[int, LayerStatistics] = field(default_factory=dict)
    of_layers: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    of_tensors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    _scales: dict[tuple[str, str], tuple[float, float] | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Iterable[TensorStatistics],
        layers: Iterable[LayerStatistics],
        of_layers: Mapping[str, Mapping[int, float]] | None = None,
        of_tensors: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Measurements:
        """of_layers, of_tensors: figures kept by metric key, then by layer number or tensor name."""
        by_name, by_layer = {row.name: row for row in rows}, {row.layer: row for row in layers}
        return cls(by_name, by_layer, of_layers or {}, of_tensors or {})

    def known(self, metric: Metric) -> bool:
        """Whether anything was measured that has this metric: where nothing was it takes no place."""
        return bool(
            (metric.attribute and self.tensors) or self.of_layers.get(metric.key) or self.of_tensors.get(metric.key)
        )

    def forget_scales(self) -> None:
        """After figures of layers have come in."""
        self._scales.clear()

    def of_tensor(self, metric: Metric, name: str) -> float | None:
        if not metric.attribute:
            return self.of_tensors.get(metric.key, {}).get(name)
        row = self.tensors.get(name)
        return None if row is None else value_of(metric, row)

    def of_layer(self, metric: Metric, layer: int) -> float | None:
        if not metric.attribute:
            return self.of_layers.get(metric.key, {}).get(layer)
        row = self.layers.get(layer) if metric.on_layers else None
        return None if row is None else value_of(metric, row)

    def curve(self, metric: Metric, short: str | None, layers: Iterable[int]) -> list[float | None]:
        """The metric over the layers: of the tensor called `short` (`ffn_down`), or of whole layers for None."""
        if short is None or metric.layers_only:
            return [self.of_layer(metric, layer) for layer in layers]
        by_layer = dict(self._along(metric, short))
        return [by_layer.get(layer) for layer in layers]

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
        return [value for _, value in self._along(metric, short)]

    @cached_property
    def _by_short(self) -> dict[str, list[TensorStatistics]]:
        """The rows of each kind: experts stored one by one are hundreds of kinds."""
        found: dict[str, list[TensorStatistics]] = {}
        for row in self.tensors.values():
            found.setdefault(row.tensor, []).append(row)
        return found

    def _along(self, metric: Metric, short: str) -> Iterator[tuple[int | None, float | None]]:
        """Layer and value of every tensor called `short`."""
        if metric.attribute:
            yield from ((row.layer, value_of(metric, row)) for row in self._by_short.get(short, ()))
            return
        for name, value in self.of_tensors.get(metric.key, {}).items():
            layer, kind = split_name(name)
            if kind == short:
                yield layer, value


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
    return metric.factor * value
