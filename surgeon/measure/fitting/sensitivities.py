"""How much each part of a model matters, measured: errors of all types, then one probe after the other.

Both are kept in the state folder, so that a run that was stopped goes on, and every later fit of the model begins with
its figures at hand.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import surgeon_kernels
from surgeon.errors import SurgeonError
from surgeon.fit.candidates import TypeSet, candidates, compared, probe_types
from surgeon.fit.cost_model import CostModel, GroupProbes, Probe, encoder_of
from surgeon.fit.groups import groups_of
from surgeon.fit.tensor_errors import Errors
from surgeon.folders import state_folder
from surgeon.gguf.identity import open_identity
from surgeon.imatrix.imatrix import Imatrix
from surgeon.json_text import json_text, read_json
from surgeon.measure.kept_figures import alone_in
from surgeon.measure.probing import Place, Prober, Text
from surgeon.measure.progress import Standing
from surgeon.measure.speeds import ERRORS, PROBE, Stage
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import file_sha256
from surgeon.resolve.resolution import Resolution
from surgeon.resolve.resolve import resolve
from surgeon.resolve.tensor_facts import TensorFacts
from surgeon.whole_files import write_whole
from surgeon.write.feedback import DEFAULT_SHRINK
from surgeon.write_guard import Permit
from surgeon_kernels.formats import FORMATS

EVERYTHING = "everything at a high type"
LEVELS = ("low", "middle")
_STAGES = 3
_SAVE_SECONDS = 2.0


@dataclass
class Sensitivities:
    """Errors and probes of one model on one text: `load()` what is known, `steps()` measures the rest, `costs()`.

    errors: tensor -> type -> relative error; probes: label -> (KL divergence, its standard error).
    """

    prober: Prober
    text: Text
    types: TypeSet = field(default_factory=TypeSet)
    errors: Errors = field(default_factory=dict)
    probes: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = groups_of(self.prober.model)

    def load(self) -> bool:
        """Take what earlier runs measured; whether nothing is missing. Raises SurgeonError."""
        self.errors = _read(self._errors_file)
        self.probes = {label: (kld, error) for label, (kld, error) in _read(self._probes_file).items()}
        return not self._missing_errors() and not self._missing_probes()

    def load_newest(self) -> CostModel | None:
        """What was measured last, on whatever text; None where nothing is complete. Raises SurgeonError."""
        folder = self._errors_file.parent
        found = sorted(folder.glob(f"{self._identity}-*-probes.json"), key=lambda path: path.stat().st_mtime_ns)
        if not found:
            return None
        self.errors, self.probes = _read(self._errors_file), _read(found[-1])
        return None if self._missing_errors() or self._missing_probes() else self.costs()

    def steps(self) -> Iterator[Standing]:
        """Do what is missing. Raises SurgeonError, EngineError, EngineMissing, Cancelled; what was measured is kept."""
        self.load()
        yield from self._measure_errors()
        missing = self._missing_probes()
        if not missing:
            return
        base = yield from self.prober.base(self.text, Place(1, _STAGES))
        plans = {label: self._resolved(types) for label, types in missing.items()}
        for item in self.prober.probe(base, plans, "sensitivities", Place(2, _STAGES), kind=self.probe_kind):
            if isinstance(item, Standing):
                yield item
            else:
                label, figures = item
                self.probes[label] = (figures["mean_kld"], figures["mean_kld_error"])
                self._keep_probes()

    def _keep_probes(self) -> None:
        with alone_in(self._probes_file.parent):
            self.probes = _read_anew(self._probes_file) | self.probes
            self._write(self._probes_file, self.probes)

    def _keep_errors(self) -> None:
        with alone_in(self._errors_file.parent):
            for name, found in _read_anew(self._errors_file).items():
                if isinstance(found, dict):
                    self.errors[name] = found | self.errors.get(name, {})
            self._write(self._errors_file, self.errors)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Keep what was measured, in a file of our own that is none of those that are read."""
        inputs = (*self.prober.model.file.paths, self.text.path)
        write_whole(path, json_text(content), permit=Permit(inputs, replace=True))

    def costs(self) -> CostModel:
        """The cost of every tensor in every type, from all that was measured."""
        wanted = self._wanted_probes()
        found = {label: Probe(wanted[label], *figures) for label, figures in self.probes.items() if label in wanted}
        pairs = {
            group: GroupProbes(*(found[_label(group, level)] for level in LEVELS))
            for group in self.groups
            if all(_label(group, level) in found for level in LEVELS)
        }
        names = {group: tuple(facts.name for facts in members) for group, members in self.groups.items()}
        return CostModel(self.errors, names, pairs, found.get(EVERYTHING), self._encoder)

    # --- what belongs to what

    @property
    def _identity(self) -> str:
        """Of model, importances and encoder: what the errors belong to."""
        prober = self.prober
        importances = "" if prober.importances is None else self._weighed_by(prober.importances)
        parts = (open_identity(prober.model.file), importances, self._encoder)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def _encoder(self) -> str:
        return encoder_of(self.prober.moments, self.prober.shrink, self.prober.rounds)

    def _weighed_by(self, imatrix: Imatrix) -> str:
        moments = self.prober.moments
        return moments.digest if moments is not None and imatrix.path == moments.path else file_sha256(imatrix.path)

    @property
    def _errors_file(self) -> Path:
        return state_folder() / "fit" / f"{self._identity}-errors.json"

    @property
    def _probes_file(self) -> Path:
        text = self.text
        parts = (file_sha256(text.path), text.n_ctx, text.n_chunks, self.prober.engine_label)
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        return state_folder() / "fit" / f"{self._identity}-{digest}-probes.json"

    # --- what is missing

    def weights_left(self) -> int:
        """Weights × types whose errors are missing: the same for every text. Raises SurgeonError."""
        self.errors = _read(self._errors_file)
        return sum(facts.tensor.n_elements * len(types) for facts, types in self._missing_errors())

    def probes_left(self) -> int:
        """Probes that are missing. Raises SurgeonError."""
        self.probes = _read(self._probes_file)
        return len(self._missing_probes())

    @property
    def errors_kind(self) -> str:
        """The kind of work that errors are, for `speeds`: the feedback encoder is slower."""
        return f"{ERRORS} feedback" if self.prober.moments is not None else ERRORS

    @property
    def probe_kind(self) -> str:
        """The same of probes."""
        return f"{PROBE} feedback" if self.prober.moments is not None else PROBE

    def _missing_errors(self) -> list[tuple[TensorFacts, tuple[str, ...]]]:
        missing = []
        for facts in (facts for members in self.groups.values() for facts in members if facts.from_type in FORMATS):
            known = self.errors.get(facts.name, {})
            offered = candidates(facts, (*self.types.offered(facts), *compared(facts)), self.prober.importances)
            types = tuple(dict.fromkeys(name for name in (*offered, *_probed(facts)) if name not in known))
            if types:
                missing.append((facts, types))
        return missing

    def _wanted_probes(self) -> dict[str, dict[str, str]]:
        """Label -> tensor -> type."""
        wanted: dict[str, dict[str, str]] = {EVERYTHING: {}}
        for group, members in self.groups.items():
            for place, level in enumerate(LEVELS):
                wanted[_label(group, level)] = _exchanged(members, place)
            wanted[EVERYTHING] |= _exchanged(members, 2)
        return {label: types for label, types in wanted.items() if types}

    def _missing_probes(self) -> dict[str, dict[str, str]]:
        return {label: types for label, types in self._wanted_probes().items() if label not in self.probes}

    def _resolved(self, types: Mapping[str, str]) -> Resolution:
        """The plan that gives these tensors their types and leaves everything else."""
        prober = self.prober
        plan = Plan(types=tuple(sorted(types.items())), allow_requantize=True, feedback_rounds=prober.rounds)
        if prober.moments is not None:
            plan = replace(plan, shrink=self._shrink)
        return resolve(prober.model, plan, prober.importances, prober.moments)

    @property
    def _shrink(self) -> float:
        """One for all inputs where a write would choose: what is measured here must be comparable."""
        return DEFAULT_SHRINK if self.prober.shrink is None else self.prober.shrink

    def _measure_errors(self) -> Iterator[Standing]:
        missing = self._missing_errors()
        sizes = {facts.name: facts.tensor.n_elements * len(types) for facts, types in missing}
        targets, sources = {name for _, types in missing for name in types}, {facts.from_type for facts, _ in missing}
        feedback = self.prober.moments is not None
        here = missing and self.prober.encodes_here
        for kernel in surgeon_kernels.warm(targets, sources=sources, feedback=feedback) if here else ():
            yield Standing("compiling kernels (first run)", 0, _STAGES, 0.0, kernel.name)
        start = saved = time.monotonic()
        done, total = 0, sum(sizes.values())
        for name, found in self.prober.errors(missing, self._shrink):
            self.errors.setdefault(name, {}).update(found)
            done += sizes[name]
            now = time.monotonic()
            if now - saved > _SAVE_SECONDS or done == total:
                saved = now
                self._keep_errors()
            part = done / total
            yield Standing("errors of the types", 0, _STAGES, part, name, {}, (now - start) * (1 - part) / part)
        if here:
            self.prober.speeds.keep(Stage(self.errors_kind, total), time.monotonic() - start)


def newest_costs(prober: Prober) -> CostModel | None:
    """What was measured last with these importances, on whatever text. Raises SurgeonError."""
    return Sensitivities(prober, Text(Path())).load_newest()


def _label(group: str, level: str) -> str:
    return f"{group} {level}"


def _levels(facts: TensorFacts) -> tuple[str, str, str]:
    """The low, the middle and the high type that a tensor is probed at."""
    return (*probe_types(facts), "Q8_0" if facts.columns % 256 else "Q6_K")


def _exchanged(members: Sequence[TensorFacts], place: int) -> dict[str, str]:
    return {facts.name: _levels(facts)[place] for facts in members if _smaller(facts, _levels(facts)[place])}


def _probed(facts: TensorFacts) -> list[str]:
    return [kind for kind in _levels(facts) if _smaller(facts, kind)]


def _smaller(facts: TensorFacts, type_name: str) -> bool:
    """Whether the type fits the rows and takes fewer bytes than the tensor has."""
    return facts.columns % FORMATS[type_name].block == 0 and facts.nbytes_as(type_name) < facts.tensor.nbytes


def _read_anew(path: Path) -> dict[str, Any]:
    """What other runs have added meanwhile; what damaged the file meanwhile takes nothing of ours."""
    with suppress(SurgeonError):
        return _read(path)
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SurgeonError(f"{path}: cannot be read ({error}); remove it, it will be measured again") from error
    if not isinstance(found, dict):
        raise SurgeonError(f"{path}: not a file of measured sensitivities; remove it")
    return found
