"""From costs and a number of bytes to a plan: which types may be chosen for what, the choice, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from surgeon.errors import SurgeonError, UsageError
from surgeon.figures import divergence
from surgeon.figures import size as human
from surgeon.fit.candidates import TypeSet, candidates
from surgeon.fit.cost_model import CostModel, Predicted
from surgeon.fit.groups import kind_of
from surgeon.fit.solver import UnreachableError, solve
from surgeon.gguf.layout import padded
from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.model import Model
from surgeon.moments.moments import Moments
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import Plan, TypeRule, with_fitted
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.resolve.tensor_facts import TensorFacts, facts_of
from surgeon.resolve.tensor_op import Cause
from surgeon_kernels.formats import FORMATS

_WORDS = ("general.", "tokenizer.chat_template")  # keys that change no figure
_BY_THE_USER = frozenset({Cause.HAND, Cause.OPTION, Cause.RULE})


def refuse_unfit(plan: Plan) -> None:
    """Raises UsageError for what no costs are measured for: pruning, llama-quantize's defects, part of an imatrix,
    metadata that may change what the model computes.
    """
    if plan.pruned or plan.pruned_experts or plan.healing is not None:
        raise UsageError("fit works on whole models: write the pruned model first, then fit that")
    if plan.compat:
        raise UsageError("fit measures surgeon's own encoders, not llama-quantize's defects: leave out --compat")
    if plan.include_weights or plan.exclude_weights:
        raise UsageError("fit weighs all tensors by the imatrix: leave out --include-weights and --exclude-weights")
    keys = [*(override.key for override in plan.override_kv), *plan.deleted_keys]
    for key in keys:
        if not key.startswith(_WORDS):
            raise UsageError(f"fit measures the model as it is: change {key} in a COPY first, then fit that")


@dataclass(frozen=True)
class Limits:
    """What the choice must respect beside the plan's own rules, types and options, which always win.

    floors: no tensor that the pattern finds gets fewer bits per weight than the type; same: sets of kinds
    (`ffn_gate`, `ffn_up`) that get one type in each layer; host: the tensors whose bytes do not count, because only
    those on a card do (None: the whole file counts).
    """

    types: TypeSet = field(default_factory=TypeSet)
    floors: tuple[TypeRule, ...] = ()
    same: tuple[frozenset[str], ...] = ()
    host: frozenset[str] | None = None


@dataclass(frozen=True)
class Unit:
    """Tensors that get one type together; costs: type -> what it adds to the predicted divergence, or too little."""

    members: tuple[TensorFacts, ...]
    costs: dict[str, float]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Fit:
    """The outcome. chosen: the unit and its type, in the order of the model."""

    resolution: Resolution
    predicted: Predicted
    chosen: tuple[tuple[Unit, str], ...]

    @property
    def plan(self) -> Plan:
        return self.resolution.plan


@dataclass(frozen=True)
class Mixed:
    """What a TYPE of llama-quantize makes of the model: its size and predicted divergence."""

    name: str
    resolution: Resolution
    predicted: Predicted

    @property
    def nbytes(self) -> int:
        return self.resolution.total_bytes


class Allocator:
    """Fits one model again and again: for any number of bytes, with the same costs and limits.

    plan: the user's, whose rules, hand-set types and options hold; its file type decides nothing but metadata.
    moments: what the feedback encoder goes by, which the costs must have been measured with; None: the stock encoder.
    Raises SurgeonError for a plan with errors, UsageError as `refuse_unfit` and for limits that leave nothing.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        imatrix: Imatrix | None,
        costs: CostModel,
        limits: Limits | None = None,
        moments: Moments | None = None,
    ) -> None:
        refuse_unfit(plan)
        if imatrix is None and moments is not None:
            imatrix = moments.as_imatrix
        self.model, self.imatrix, self.moments, self.costs = model, imatrix, moments, costs
        self.limits = limits or Limits()
        self._bare = Plan(
            override_kv=plan.override_kv, allow_requantize=plan.allow_requantize, moments_file=plan.moments_file,
            shrink=plan.shrink, feedback_rounds=plan.feedback_rounds,
        )  # fmt: skip
        self.mixes = self._mixes()
        base = replace(plan, file_type=self.mixes[0].name if self.mixes else "Q8_0")
        self._base, self._start = base, resolve(model, base, imatrix, moments)
        if self._start.errors:
            raise SurgeonError(f"{model.file.path}: {self._start.errors[0].text}")
        self._facts = facts_of(model)
        self.units = self._units()
        free = {facts.name for unit in self.units for facts in unit.members}
        self.fixed_bytes = self._fixed(free)
        self._columns = tuple(dict.fromkeys(kind for unit in self.units for kind in unit.costs))
        self._costs, self._sizes = self._matrices()

    def _fixed(self, free: Set[str]) -> int:
        """Bytes that count whatever is chosen."""
        align, kept, host = self._start.alignment, self._start.kept, self.limits.host
        if host is None:
            return self._start.total_bytes - sum(padded(op.nbytes, align) for op in kept if op.source in free)
        return sum(padded(op.nbytes, align) for op in kept if op.source not in free | host)

    @property
    def least(self) -> int:
        """Bytes of the smallest file there can be."""
        return self.fixed_bytes + sum(min(unit.sizes.values()) for unit in self.units)

    @property
    def most(self) -> int:
        """Bytes of the file in which nothing that can be left unchanged is changed."""
        return self.fixed_bytes + sum(max(unit.sizes.values()) for unit in self.units)

    def bytes_like(self, file_type: str) -> int:
        """Bytes of the file that llama-quantize makes of this TYPE. Raises UsageError where it cannot be made."""
        made = resolve(self.model, replace(self._bare, file_type=file_type), self.imatrix)
        if made.errors:
            raise UsageError(f"--like {file_type}: {made.errors[0].text}")
        return made.total_bytes

    def bytes_at(self, bpw: float) -> int:
        """The most bytes of a file whose tensors have at most so many bits per weight."""
        return self._overhead + int(bpw * self._start.n_parameters / 8)

    @property
    def _overhead(self) -> int:
        """Bytes of the file before its tensors."""
        return self._start.total_bytes - sum(padded(op.nbytes, self._start.alignment) for op in self._start.kept)

    def _said(self, nbytes: int, rounded: Callable[[float], float]) -> str:
        """`3.95 MB (2.73 bpw)`, the bits per weight rounded so that they can be asked for."""
        bpw = rounded(100 * 8 * (nbytes - self._overhead) / self._start.n_parameters) / 100
        return f"{human(nbytes)} ({bpw:.2f} bpw)"

    def fit(self, nbytes: int, option: str = "--size") -> Fit:
        """The plan whose file has at most `nbytes`. Raises UsageError where there is none, with the nearest size."""
        if nbytes > self.most:
            largest = self._said(self.most, math.floor)
            raise UsageError(f"{option}: {human(nbytes)} is more than the model has; the largest is {largest}")
        try:
            choice = solve(self._costs, self._sizes, nbytes - self.fixed_bytes)
        except UnreachableError as error:
            least = self._said(error.least + self.fixed_bytes, math.ceil)
            raise UsageError(f"{option}: {human(nbytes)} cannot be had; the smallest is {least}") from None
        chosen = tuple((unit, self._columns[column]) for unit, column in zip(self.units, choice, strict=True))
        return self.assigned(chosen)

    def curve(self, points: int) -> list[Fit]:
        """Fits at evenly spaced sizes, from the smallest to the largest mix, or to what nothing can improve."""
        top = min(self.most, max([mix.nbytes for mix in self.mixes], default=self.most))
        sizes = [self.least + (top - self.least) * number // max(1, points - 1) for number in range(points)]
        return [self.fit(nbytes) for nbytes in dict.fromkeys(sizes)]

    def counted(self, resolution: Resolution) -> int:
        """The bytes of a plan that count: of its file, or of its tensors on the card."""
        align, host = resolution.alignment, self.limits.host
        if host is None:
            return resolution.total_bytes
        return sum(padded(op.nbytes, align) for op in resolution.kept if op.source not in host)

    def mix_within(self, nbytes: int) -> Mixed | None:
        """Of llama-quantize's TYPEs that fit into so many bytes the one predicted to lose least."""
        fitting = [mix for mix in self.mixes if self.counted(mix.resolution) <= nbytes]
        return min(fitting, key=lambda mix: mix.predicted.kld, default=None)

    def assigned(self, chosen: tuple[tuple[Unit, str], ...]) -> Fit:
        """The plan of a choice made elsewhere: every unit with its type."""
        types = {facts.name: kind for unit, kind in chosen for facts in unit.members}
        reasons = {facts.name: reason(unit, kind) for unit, kind in chosen for facts in unit.members}
        fitted = with_fitted(self._base, types, reasons)
        nearest = min(self.mixes, key=lambda mix: abs(mix.nbytes - self._bytes(chosen)), default=None)
        if nearest is not None:
            fitted = replace(fitted, file_type=nearest.name)
        resolution = self._resolved(fitted)
        predicted = self.costs.predicted_types(resolution)
        if predicted is None:
            raise SurgeonError(f"{self.model.file.path}: the plan gives types whose cost is not known; fit it anew")
        return Fit(resolution, predicted, chosen)

    def as_mix(self, mix: Mixed) -> Fit | None:
        """A choice of the mix's types; None where the plan or the limits do not allow one of them."""
        types = {op.source: op.to_type for op in mix.resolution.kept}
        chosen = []
        for unit in self.units:
            kinds = {types[facts.name] for facts in unit.members}
            if len(kinds) > 1 or not kinds <= unit.sizes.keys():
                return None
            chosen.append((unit, kinds.pop()))
        same = self.assigned(tuple(chosen))
        return same if self.counted(same.resolution) <= self.counted(mix.resolution) else None

    def _resolved(self, plan: Plan) -> Resolution:
        return resolve(self.model, plan, self.imatrix, self.moments)

    def _bytes(self, chosen: Sequence[tuple[Unit, str]]) -> int:
        return self.fixed_bytes + sum(unit.sizes[kind] for unit, kind in chosen)

    def _mixes(self) -> list[Mixed]:
        """TYPEs whose every tensor has a known cost, the smallest first."""
        found = []
        for name, kind in FILE_TYPES.items():
            if kind.base is None or not FORMATS[kind.base].is_quantized or "another name" in kind.description:
                continue
            resolution = self._resolved(replace(self._bare, file_type=name))
            predicted = None if resolution.errors else self.costs.predicted_types(resolution)
            if predicted is not None:
                found.append(Mixed(name, resolution, predicted))
        return sorted(found, key=lambda mix: mix.nbytes)

    # --- what may be chosen

    def _units(self) -> tuple[Unit, ...]:
        pinned = {op.source for op in self._start.kept if op.cause in _BY_THE_USER}
        floors = [(self._facts.matching(rule.pattern), FORMATS[rule.type].bpw) for rule in self.limits.floors]
        parts: dict[object, list[TensorFacts]] = {}
        for facts in self._facts.by_layer:
            if facts.kept is None and facts.name not in pinned and self.costs.group_of.get(facts.name):
                parts.setdefault(self._shared(facts), []).append(facts)
        units = []
        for members in parts.values():
            unit = self._unit(tuple(members), floors)
            if unit is not None:
                units.append(unit)
        if not units:
            raise UsageError(f"{self.model.file.path}: the rules and limits leave no tensor to choose a type for")
        return tuple(units)

    def _shared(self, facts: TensorFacts) -> object:
        """What tensors that get one type together have in common."""
        kind, layer = kind_of(facts), facts.tensor.layer
        together = next((kinds for kinds in self.limits.same if kind in kinds), None)
        if together is not None:
            return layer, together
        return (layer, kind) if layer is not None else facts.name

    def _unit(self, members: tuple[TensorFacts, ...], floors: Sequence[tuple[frozenset[str], float]]) -> Unit | None:
        """None where no type is left: the tensors then stay as they are."""
        allowed = [self._allowed(facts, floors) for facts in members]
        shared = [kind for kind in allowed[0] if all(kind in others for others in allowed)]
        if not shared:
            return None
        costs = {kind: sum(one[kind] for one in allowed) for kind in shared}
        align, host = self._start.alignment, self.limits.host or frozenset()
        counted = [facts for facts in members if facts.name not in host]
        sizes = {kind: sum(padded(facts.nbytes_as(kind), align) for facts in counted) for kind in shared}
        return Unit(members, costs, sizes)

    def _allowed(self, facts: TensorFacts, floors: Sequence[tuple[frozenset[str], float]]) -> dict[str, float]:
        """Type -> cost; the type it has now costs nothing."""
        least = max((bpw for names, bpw in floors if facts.name in names), default=0.0)
        found = {}
        for kind in candidates(facts, self.limits.types.offered(facts), self.imatrix):
            cost = self.costs.cost(facts.name, kind)
            if cost is not None and FORMATS[kind].bpw >= least:
                found[kind] = cost
        if facts.from_type in FORMATS and not (found and facts.name in (self.limits.host or ())):
            found[facts.from_type] = 0.0  # as it is; what costs no byte on the card need not be that large
        return found

    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        shape = len(self.units), len(self._columns)
        costs, sizes = np.full(shape, np.inf), np.zeros(shape, np.int64)
        for row, unit in enumerate(self.units):
            for column, kind in enumerate(self._columns):
                if kind in unit.costs:
                    costs[row, column], sizes[row, column] = unit.costs[kind], unit.sizes[kind]
        return costs, sizes


def reason(unit: Unit, chosen: str) -> str:
    """`fit: +0.2 MB over Q4_K here saves .0004`: what the last step up brought, or what the next would."""
    smaller = [kind for kind in unit.sizes if unit.sizes[kind] < unit.sizes[chosen]]
    if smaller:
        below = _steepest(unit, chosen, smaller)
        more, saved = unit.sizes[chosen] - unit.sizes[below], unit.costs[below] - unit.costs[chosen]
        return f"fit: +{human(more)} over {below} here saves {divergence(saved)}"
    larger = [kind for kind in unit.sizes if unit.sizes[kind] > unit.sizes[chosen]]
    if not larger:
        return "fit: stays in the computer's memory" if len(unit.sizes) > 1 else "fit: the only type it may have"
    above = _steepest(unit, chosen, larger)
    more, saved = unit.sizes[above] - unit.sizes[chosen], unit.costs[chosen] - unit.costs[above]
    return f"fit: +{human(more)} for {above} would save only {divergence(saved)}"


def _steepest(unit: Unit, chosen: str, others: Sequence[str]) -> str:
    """The neighbour that was hardest to leave (below) or is most worth going to (above), per byte."""

    def rate(kind: str) -> float:
        return (unit.costs[kind] - unit.costs[chosen]) / (unit.sizes[chosen] - unit.sizes[kind])

    below = unit.sizes[others[0]] < unit.sizes[chosen]
    return min(others, key=rate) if below else max(others, key=rate)


@dataclass(frozen=True)
class Improvement:
    """One tensor a type up: what it costs in bytes and saves of the predicted divergence."""

    unit: Unit
    before: str
    after: str

    @property
    def more(self) -> int:
        return self.unit.sizes[self.after] - self.unit.sizes[self.before]

    @property
    def saved(self) -> float:
        return self.unit.costs[self.before] - self.unit.costs[self.after]


def improvements(fit: Fit, count: int) -> list[Improvement]:
    """Where the next bytes would do most, the best first."""
    found = []
    for unit, kind in fit.chosen:
        larger = [other for other in unit.sizes if unit.sizes[other] > unit.sizes[kind]]
        if larger:
            found.append(Improvement(unit, kind, _steepest(unit, kind, larger)))
    return sorted(found, key=lambda one: -one.saved / one.more)[:count]


def shares(fit: Fit) -> Mapping[str, tuple[int, int, float, dict[str, int]]]:
    """Kind -> (weights, bytes, predicted divergence, type -> how many tensors), of what was chosen."""
    found: dict[str, tuple[int, int, float, dict[str, int]]] = {}
    for unit, kind in fit.chosen:
        name = kind_of(unit.members[0])
        weights, nbytes, cost, types = found.get(name, (0, 0, 0.0, {}))
        types = {**types, kind: types.get(kind, 0) + len(unit.members)}
        weights += sum(facts.tensor.n_elements for facts in unit.members)
        nbytes += sum(facts.nbytes_as(kind) for facts in unit.members)
        found[name] = weights, nbytes, cost + unit.costs[kind], types
    return found
