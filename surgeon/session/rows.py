"""From the session to the rows that are to be seen: folding, filter and order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from surgeon.model.model import Layer, Tensor
from surgeon.resolve.tensor_op import Cause, TensorOp
from surgeon.session.filters import Filter
from surgeon.session.metrics import METRICS
from surgeon.session.session import LayerSummary, Session, layer_key


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor; depth: 1 inside an unfolded layer."""

    session: Session
    tensor: Tensor
    depth: int

    @property
    def key(self) -> str:
        return self.tensor.name

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def layer(self) -> int | None:
        return self.tensor.layer

    @property
    def op(self) -> TensorOp:
        return self.session.ops[self.tensor.name]

    @property
    def pruned(self) -> bool:
        return self.op.action == "drop"

    def metric(self, key: str) -> float | None:
        return self.session.measurements.of_tensor(METRICS[key], self.name)

    def text_field(self, key: str) -> str:
        return {"type": self.op.to_type, "to": self.op.to_type, "from": self.op.from_type, "name": self.name}[key]

    def number_field(self, key: str) -> float | None:
        if key.startswith("layer."):
            return None if self.layer is None else self.session.measurements.of_layer(METRICS[key[6:]], self.layer)
        if key in METRICS:
            return self.metric(key)
        ne = self.tensor.ne
        return {
            "size": self.op.nbytes if not self.pruned else 0,
            "before": self.tensor.nbytes,
            "elements": self.tensor.n_elements,
            "cols": ne[0] if ne else 1,
            "rows": self.tensor.n_elements // max(ne[0], 1) if ne else 1,
            "layer": self.layer,
        }[key]

    def flag(self, key: str) -> bool:
        if key == "pruned":
            return self.pruned
        if key == "marked":
            return self.session.is_marked(self.tensor)
        if key == "changed":
            return not self.pruned and self.op.to_type != self.op.from_type
        if key == "uncovered":
            return self.name in self.session.uncovered
        return self.op.cause is Cause.RULE if key == "rule" else self.op.fell_back


@dataclass(frozen=True, slots=True)
class LayerRow:
    session: Session
    layer_: Layer
    unfolded: bool
    shown: int

    @property
    def key(self) -> str:
        return layer_key(self.layer_.index)

    @property
    def layer(self) -> int:
        return self.layer_.index

    @property
    def summary(self) -> LayerSummary:
        return self.session.layers[self.layer_.index]

    @property
    def pruned(self) -> bool:
        return self.summary.number is None

    def metric(self, key: str) -> float | None:
        return self.session.measurements.of_layer(METRICS[key], self.layer)


Row = TensorRow | LayerRow


@dataclass(frozen=True)
class View:
    """How the tree is looked at. flat: tensors of all layers in one list, to rank them against each other."""

    unfolded: frozenset[int] = frozenset()
    filter: Filter | None = None
    sort: str | None = None
    descending: bool = True
    flat: bool = False


SORTS = ("name", "size", "type", *METRICS)


def visible_rows(session: Session, view: View) -> list[Row]:
    """The rows from top to bottom; with a filter, layers that have no tensor left are not there."""
    accepts = view.filter.accepts if view.filter is not None else _anything
    others = [TensorRow(session, tensor, 0) for tensor in session.model.others]
    if view.flat:
        inside = (row for layer in session.model.layers for row in rows_inside(session, layer) if accepts(row))
        found = [*filter(accepts, others), *(TensorRow(session, row.tensor, 0) for row in inside)]
        return list(_sorted(found, view))
    above, below = _around([row for row in others if accepts(row)])
    layers = [row for row in _layers(session, view, accepts) if row[0].shown]
    tops = _sorted([row for row, _ in layers], view)
    inside_of = {row.key: tensors for row, tensors in layers}
    rows: list[Row] = list(above)
    for top in tops:
        rows.append(top)
        if isinstance(top, LayerRow) and top.unfolded:
            rows.extend(_sorted(inside_of[top.key], view))
    return [*rows, *below]


def _anything(_: TensorRow) -> bool:
    return True


_inside: WeakKeyDictionary[Session, dict[int, list[TensorRow]]] = WeakKeyDictionary()


def rows_inside(session: Session, layer: Layer) -> list[TensorRow]:
    """The rows of a layer's tensors; they look everything up in the session, so no edit makes them stale."""
    known = _inside.setdefault(session, {})
    if layer.index not in known:
        known[layer.index] = [TensorRow(session, tensor, 1) for tensor in layer.tensors]
    return known[layer.index]


def _layers(
    session: Session, view: View, accepts: Callable[[TensorRow], bool]
) -> Iterator[tuple[LayerRow, list[TensorRow]]]:
    for layer in session.model.layers:
        unfolded = layer.index in view.unfolded
        if view.filter is None and not unfolded:
            yield LayerRow(session, layer, False, len(layer.tensors)), []
            continue
        tensors = rows_inside(session, layer)
        if view.filter is not None:
            tensors = [row for row in tensors if accepts(row)]
        yield LayerRow(session, layer, unfolded, len(tensors)), tensors


def _around(others: list[TensorRow]) -> tuple[list[TensorRow], list[TensorRow]]:
    """Tensors outside the layers: the input side above them, the output side below, wherever the file has them."""
    below = [row for row in others if row.tensor.name.startswith(("output", "cls", "nextn"))]
    return [row for row in others if row not in below], below


def _sorted(rows: Iterable[Row], view: View) -> list[Row]:
    """In the order asked for; what has no value (layer 0 has no CosSim) is never ranked and comes last."""
    rows = list(rows)
    if view.sort is None:
        return rows
    ranked = [(value, row) for row in rows if (value := sort_value(row, view.sort)) is not None]
    rest = [row for row in rows if sort_value(row, view.sort) is None]
    ranked.sort(key=lambda pair: pair[0], reverse=view.descending)
    return [*(row for _, row in ranked), *rest]


def sort_value(row: Row, key: str) -> Any:
    """What the row is ranked by, a number or a text; None when it has no value."""
    if key in METRICS:
        return row.metric(key)
    if isinstance(row, LayerRow):
        summary = row.summary
        return {"name": row.layer, "size": summary.nbytes, "type": summary.bpw}[key]
    return {"name": row.name, "size": row.op.nbytes, "type": row.op.to_type}[key]


def unfold_matches(session: Session, filter_: Filter) -> frozenset[int]:
    """The layers in which the filter finds something: all of them are opened when it is set."""
    return frozenset(
        layer.index for layer in session.model.layers if any(map(filter_.accepts, rows_inside(session, layer)))
    )
