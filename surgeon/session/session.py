"""What is on the table: model, importance matrix, plan with undo, marks, and what the plan comes to.

The screen is a thin view over this; nothing here knows textual. Every edit goes through `change`, so that everything
can be undone, and is resolved at once, so that sizes and reasons on the screen are always those of the output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from surgeon import figures
from surgeon.anatomy.pruning import layer_roles
from surgeon.errors import SurgeonError
from surgeon.fit.cost_model import CostModel, Predicted, encoder_of
from surgeon.imatrix.coverage import Coverage, coverage
from surgeon.imatrix.imatrix import Imatrix
from surgeon.imatrix.influence import Influence
from surgeon.imatrix.statistics import LayerStatistics, TensorStatistics, layer_statistics, tensor_statistics
from surgeon.layer_lists import spans
from surgeon.model.categories import kept_because
from surgeon.model.model import Model, Tensor
from surgeon.moments.files import beside, is_moments, load_moments, load_weighing
from surgeon.moments.moments import Moments
from surgeon.plan import plan as plans
from surgeon.plan.plan import History, Plan, WriteSettings
from surgeon.plan.recipe import Recipe
from surgeon.resolve.resolve import Resolution, TensorOp, resolve
from surgeon.resolve.tensor_facts import facts_of
from surgeon.session.fit_figures import Fragilities, PlanErrors, PlanShares
from surgeon.session.layer_figures import influence_figures, influence_of
from surgeon.session.metrics import Measurements

_LATELY = 4  # resolutions at hand for undo and redo

Scope = Literal["row", "marked", "shown", "layer", "kind", "all"]


@dataclass(frozen=True)
class LayerSummary:
    """A layer under the plan: bytes and parameters of what is kept, new number (None: pruned), types that occur."""

    index: int
    number: int | None
    before: int
    nbytes: int
    elements: int
    types: tuple[str, ...]
    changed: bool

    @property
    def bpw(self) -> float:
        return 8 * self.nbytes / self.elements if self.elements else 0.0


@dataclass(frozen=True, eq=False)
class _Resolved:
    """What a plan came to under an importance matrix. ops: by source; layers: the summaries that were asked for."""

    resolution: Resolution
    imatrix: Imatrix | None
    ops: dict[str, TensorOp]
    layers: Summaries


@dataclass(repr=False, eq=False)
class Session:
    model: Model
    history: History = field(default_factory=lambda: History.starting(Plan()))
    marks: frozenset[str] = frozenset()
    absent: dict[str, Recipe] = field(default_factory=dict)  # by the name of an imatrix or moments not to be read
    imatrices: dict[str, Imatrix] = field(default_factory=dict)
    moments_files: dict[str, Moments] = field(default_factory=dict)
    measurements: Measurements = field(default_factory=Measurements)
    damages: dict[int, float] = field(default_factory=dict)  # KL divergence with a layer left out, where measured
    measure_later: bool = False  # the first statistics are left to who shows the session, after its first paint
    resolution: Resolution = field(init=False)

    def __post_init__(self) -> None:
        self._measured: Imatrix | None = None
        self.refresh()

    # --- what there is

    @property
    def plan(self) -> Plan:
        return self.history.plan

    @property
    def settings(self) -> WriteSettings:
        """How the plan is to be written."""
        return self.history.present.settings

    @property
    def imatrix(self) -> Imatrix | None:
        name = self.plan.imatrix_file
        return self.imatrices.get(name) if name is not None else None

    @property
    def moments(self) -> Moments | None:
        """The second moments that the feedback encoder goes by; None for the stock encoder."""
        name = self.plan.moments_file
        return self.moments_files.get(name) if name is not None else None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.model.tensors}

    @property
    def coverage(self) -> Coverage | None:
        """How the importance matrix fits the model; None without one."""
        return self._coverage

    def covered(self, name: str) -> bool:
        return self.imatrix is not None and name in self.imatrix.entries

    @cached_property
    def roles(self) -> dict[int, str]:
        """What the layers are where they differ by position (`local`, `global`); empty where they do not."""
        return layer_roles(self.model)

    def shares_input(self, name: str) -> tuple[str, ...]:
        """Short names of the tensors of its layer that see the same input: those with the same statistics."""
        return self._shared.get(name, ())

    def use_costs(self, costs: CostModel | None) -> None:
        """What types cost, measured with the present importance matrix; None: nothing is known any more."""
        self._costs = [] if costs is None else [(self.imatrix, costs), *self._costs]
        self._predicted = None
        self.measurements = replace(
            self.measurements, of_tensors={**self.measurements.of_tensors, **self._plan_figures}
        )

    @property
    def costs(self) -> CostModel | None:
        """What types cost in predicted KL divergence, where known for the present importance matrix and encoder."""
        encoder = encoder_of(self.moments, self.plan.shrink, self.plan.feedback_rounds)
        found = (costs for imatrix, costs in self._costs if imatrix is self.imatrix and costs.encoder == encoder)
        return next(found, None)

    @property
    def predicted(self) -> Predicted | None:
        """The KL divergence that the plan will have; None where that is not known."""
        costs = self.costs
        if costs is None:
            return None
        if self._predicted is None or self._predicted[0] is not self.resolution:
            self._predicted = (self.resolution, costs.predicted_of(self.resolution))
        return self._predicted[1]

    # --- edits

    def change(self, plan: Plan, label: str, settings: WriteSettings | None = None) -> bool:
        """Make `plan` the present one, to be written by `settings` (None: those there are); False (and nothing happens)
        when both are the same. Raises SurgeonError."""
        before = self.history
        self.history = before.change(plan, label, settings)
        if self.history is before:
            return False
        try:
            self.refresh()
        except SurgeonError:
            self.history = before
            self.refresh()
            raise
        return True

    def begin_here(self) -> None:
        """What was done so far is what the session starts with: no step that undo takes back."""
        self.history = History.starting(self.plan, self.settings)

    def undo(self) -> str | None:
        """The label of what was undone, None when there was nothing."""
        if not self.history.past:
            return None
        label = self.history.present.label
        self.history = self.history.undo()
        self.refresh()
        return label

    def redo(self) -> str | None:
        if not self.history.future:
            return None
        self.history = self.history.redo()
        self.refresh()
        return self.history.present.label

    def toggle_prune(self, layers: Iterable[int]) -> str:
        """Prune these layers, or bring them back when all are pruned already; returns what was done."""
        chosen = sorted(layers)
        known = {layer.index for layer in self.model.layers}
        strange = [number for number in chosen if number not in known]
        if strange:
            raise SurgeonError(f"{self.model.name} has no layer {spans(strange)}: it has {spans(sorted(known))}")
        restoring = frozenset(chosen) <= self.plan.pruned
        label = f"{'restore' if restoring else 'prune'} {spans(chosen)}"
        if not restoring and known <= self.plan.pruned | frozenset(chosen):
            raise SurgeonError("this would prune every layer: a model needs at least one")
        self.change(plans.with_pruned_toggled(self.plan, chosen), label)
        return label

    def set_pruned(self, layers: Iterable[int]) -> str:
        """Prune these layers and no others; returns what was done."""
        label = f"prune {spans(sorted(layers))}"
        self.change(plans.with_only_pruned(self.plan, layers), label)
        return label

    def set_types(self, names: Iterable[str], type_name: str | None) -> str:
        """The type of these tensors by hand, or by rules and mix again (None)."""
        chosen = list(names)
        what = chosen[0] if len(chosen) == 1 else f"{len(chosen)} tensors"
        label = f"{what} = {type_name.lower()}" if type_name else f"{what} by mix and rules"
        self.change(plans.with_types(self.plan, chosen, type_name), label)
        return label

    def set_types_each(self, types: Mapping[str, str]) -> str:
        """A type of its own for each of these tensors, in one step."""
        plan = self.plan
        for kind in sorted(set(types.values())):
            plan = plans.with_types(plan, [name for name, wanted in types.items() if wanted == kind], kind)
        kinds = sorted(set(types.values()))
        what = next(iter(types)) if len(types) == 1 else f"{len(types)} tensors"
        label = f"{what} = {', '.join(kinds).lower()}"
        self.change(plan, label)
        return label

    def set_file_type(self, name: str) -> str:
        label = f"base type {name}"
        self.change(plans.with_file_type(self.plan, name), label)
        return label

    def add_rule(self, text: str) -> str:
        rule = plans.parse_rule(text)
        self.change(plans.with_rule(self.plan, rule), f"rule {rule}")
        return f"rule {rule}: {figures.counted(self.rule_count(rule.pattern), 'tensor')}"

    def rule_count(self, pattern: str) -> int:
        """How many kept tensors the pattern finds, whether or not an earlier rule wins."""
        found = facts_of(self.model).matching(pattern)
        return sum(1 for op in self.resolution.ops if op.action != "drop" and op.source in found)

    def use_imatrix(self, path: str | Path, loaded: Imatrix | None = None) -> str:
        """Load an importance matrix, unless it is at hand, and take it; raises SurgeonError and changes nothing when it
        cannot be read."""
        name = str(path)
        self.imatrices[name] = loaded or load_weighing(path, judged=True)
        self._measured = None
        self.change(replace(self.plan, imatrix_file=name), f"imatrix {Path(path).name}")
        self.refresh()
        fit = self.coverage
        said = f"imatrix {Path(path).name}: {fit.summary() if fit else ''}"
        found = Path(path) if is_moments(path) else beside(Path(path))
        return f"{said}; {self._use_moments(found)}" if found.exists() else said

    def _use_moments(self, path: Path) -> str:
        """Take second moments, as a step that undo takes back; what is wrong with them is reported, not fatal."""
        try:
            self.moments_files[str(path)] = load_moments(path)
        except SurgeonError as error:
            return f"its second moments cannot be used: {error}"
        self.change(replace(self.plan, moments_file=str(path)), f"second moments {path.name}")
        tensors = figures.counted(len(self.resolution.with_feedback), "tensor")
        return f"second moments {path.name}: feedback encoder for {tensors}, u takes it back"

    def toggle_mark(self, key: str) -> None:
        self.marks = self.marks ^ {key}

    # --- choosing

    def scope(self, scope: Scope, key: str, shown: Collection[str] = ()) -> tuple[Tensor, ...]:
        """The tensors a type can be given to, seen from the row `key` (a tensor's name, or `layer_key`).

        shown: names of the tensors that the filter leaves. Norms and other tensors that are never quantized are not
        among a layer's, a kind's or the marked ones.
        """
        return tuple(tensor for tensor in self.reached(scope, key, shown) if self.can_quantize(tensor))

    def reached(self, scope: Scope, key: str, shown: Collection[str] = ()) -> tuple[Tensor, ...]:
        """As `scope`, with those that are never quantized."""
        if scope == "all":
            chosen: Iterable[Tensor] = self.model.tensors
        elif scope == "marked":
            chosen = (tensor for tensor in self.model.tensors if self.is_marked(tensor))
        elif scope == "shown":
            chosen = (tensor for tensor in self.model.tensors if tensor.name in shown)
        elif scope == "kind":
            short = self.tensors[key].short if key in self.tensors else None
            chosen = (tensor for tensor in self.model.tensors if tensor.short == short)
        elif scope == "row" and key in self.tensors:
            chosen = (self.tensors[key],)
        else:
            number = self.layer_of(key)
            chosen = (tensor for tensor in self.model.tensors if number is not None and tensor.layer == number)
        return tuple(tensor for tensor in chosen if tensor.layer not in self.plan.pruned)

    def can_quantize(self, tensor: Tensor) -> bool:
        return tensor.name not in self._kept

    @cached_property
    def _kept(self) -> frozenset[str]:
        """Names of the tensors that are never quantized."""
        architecture = self.model.architecture
        return frozenset(
            tensor.name for tensor in self.model.tensors if kept_because(tensor.name, tensor.ne, architecture)
        )

    def is_marked(self, tensor: Tensor) -> bool:
        return tensor.name in self.marks or (tensor.layer is not None and layer_key(tensor.layer) in self.marks)

    def layer_of(self, key: str) -> int | None:
        tensor = self.tensors.get(key)
        return tensor.layer if tensor is not None else layer_number(key)

    # --- what the plan comes to

    def refresh(self) -> None:
        found = self._remembered()
        if found is not None:
            self.resolution, self.ops, self.layers = found.resolution, found.ops, found.layers
        else:
            self.resolution = self.preview(self.plan)
            self.ops = {op.source: op for op in self.resolution.ops}
            self.layers = Summaries(self)
            found = _Resolved(self.resolution, self.imatrix, self.ops, self.layers)
        self._lately = (found, *(one for one in self._lately if one is not found))[:_LATELY]
        if self.imatrix is not self._measured:
            self.measure()

    def _remembered(self) -> _Resolved | None:
        """What the present plan came to a few steps ago, for undo and redo; a heal file may have changed since."""
        if self.plan.healing is not None:
            return None
        now = self.plan, self.moments, self.imatrix
        for one in self._lately:
            before = one.resolution.plan, one.resolution.moments, one.imatrix
            if all(a is b for a, b in zip(now, before, strict=True)):
                return one
        return None

    def preview(self, plan: Plan) -> Resolution:
        """What another plan would come to, nothing changed."""
        name, moments = plan.imatrix_file, plan.moments_file
        return resolve(
            self.model,
            plan,
            self.imatrices.get(name) if name is not None else None,
            self.moments_files.get(moments) if moments is not None else None,
        )

    def measure(self) -> None:
        """Show the statistics of the plan's importance matrix."""
        self._measured = self.imatrix
        measured = None if self.imatrix is None or self.measure_later else statistics_of(self.imatrix)
        self.show_statistics(*(measured or ([], [], None)))

    def show_statistics(
        self, rows: Sequence[TensorStatistics], layers: Sequence[LayerStatistics], influence: Influence | None
    ) -> None:
        """Show these figures, of the plan's importance matrix or of one that is being collected."""
        of_layers = influence_figures(influence) | {"kld": self.damages}
        self.measurements = Measurements.of(rows, layers, of_layers, self._plan_figures)
        self._shared = same_statistics(self.model, self.measurements)
        if self.imatrix is not self._covering:
            self._covering = self.imatrix
            self._coverage = None if self.imatrix is None else coverage(self.model, self.imatrix)
            self.uncovered = frozenset(self._coverage.missing if self._coverage else ())

    @cached_property
    def _plan_figures(self) -> dict[str, Mapping[str, float]]:
        return {
            "err": PlanErrors(lambda: self.ops, lambda: self.costs),
            "pkld": PlanShares(lambda: self.ops, lambda: self.costs),
            "fragile": Fragilities(self.model, lambda: self.costs),
        }

    _lately: tuple[_Resolved, ...] = field(default=(), init=False)
    _costs: list[tuple[Imatrix | None, CostModel]] = field(default_factory=list, init=False)
    _predicted: tuple[Resolution, Predicted | None] | None = field(default=None, init=False)
    _shared: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    _coverage: Coverage | None = field(default=None, init=False)
    _covering: Imatrix | None = field(default=None, init=False)  # that of `_coverage`
    uncovered: frozenset[str] = field(default=frozenset(), init=False)
    layers: Summaries = field(init=False)
    ops: dict[str, TensorOp] = field(default_factory=dict, init=False)

    @cached_property
    def tensors_of(self) -> dict[int, tuple[Tensor, ...]]:
        return {layer.index: layer.tensors for layer in self.model.layers}

    @cached_property
    def _sizes_of(self) -> dict[int, tuple[int, int]]:
        """Bytes and elements of the layers in the input."""
        return {layer.index: (layer.nbytes, layer.n_elements) for layer in self.model.layers}

    def summary(self, index: int) -> LayerSummary:
        present, matrices = self.ops, self._matrices
        ops = [op for name in self._names_of[index] if (op := present[name]).action != "drop"]
        before, elements = self._sizes_of[index]
        if len(ops) < len(self._names_of[index]) or False in {op.slice is None for op in ops}:
            elements = sum([op.n_elements for op in ops])
        changed = True in {op.to_type != op.from_type for op in ops}
        types = dict.fromkeys([op.to_type for op in ops if op.source in matrices])
        number = self.resolution.renumbering.get(index, index)
        return LayerSummary(index, number, before, sum([op.nbytes for op in ops]), elements, tuple(types), changed)

    @cached_property
    def _names_of(self) -> dict[int, tuple[str, ...]]:
        return {layer.index: tuple(tensor.name for tensor in layer.tensors) for layer in self.model.layers}

    @cached_property
    def _matrices(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.model.tensors if is_matrix(tensor))


def statistics_of(imatrix: Imatrix) -> tuple[list[TensorStatistics], list[LayerStatistics], Influence | None]:
    """What `show_statistics` takes: of the tensors, of the layers, and what lies beside the matrix."""
    rows = tensor_statistics(imatrix)
    return rows, layer_statistics(rows), influence_of(imatrix.path)


class Summaries(dict[int, LayerSummary]):
    """Layer number -> summary, made when it is first asked for: of hundreds of layers a screen shows a few."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __missing__(self, index: int) -> LayerSummary:
        self[index] = self._session.summary(index)
        return self[index]


def is_matrix(tensor: Tensor) -> bool:
    """Two dimensions or more and not the bias or norm of anything: what quantizing is about."""
    return sum(size > 1 for size in tensor.ne) >= 2


def layer_key(number: int) -> str:
    """The row key of a layer; a tensor cannot be called so because of the blank."""
    return f"layer {number}"


def layer_number(key: str) -> int | None:
    return int(key[6:]) if key.startswith("layer ") and key[6:].isdigit() else None


def same_statistics(model: Model, measurements: Measurements) -> dict[str, tuple[str, ...]]:
    """Tensor name -> short names of the others in its layer with the same statistics: they see the same activations."""
    shared: dict[str, tuple[str, ...]] = {}
    for layer in model.layers:
        groups: dict[tuple[object, ...], list[Tensor]] = {}
        for tensor in layer.tensors:
            row = measurements.tensors.get(tensor.name)
            if row is not None:
                groups.setdefault((row.sum_bias, row.min, row.max, row.mean, row.std, row.entropy), []).append(tensor)
        for group in groups.values():
            for tensor in group:
                others = tuple(other.short for other in group if other is not tensor)
                if others:
                    shared[tensor.name] = others
    return shared
