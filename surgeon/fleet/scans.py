"""A scan of layers or experts over the fleet: one task a candidate. Each machine makes the whole model's base once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from surgeon.engine.client import EngineRun
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import (
    ExpertDamage,
    ExpertScanJob,
    Finished,
    LayerDamage,
    LeaveOut,
    Message,
    PruneScanJob,
    Silence,
    Started,
    Step,
)
from surgeon.errors import SurgeonError
from surgeon.fleet.cluster import Fleet
from surgeon.fleet.order import Here
from surgeon.fleet.turns import alone
from surgeon.fleet.warm import warm_run
from surgeon.folders import cache_folder
from surgeon.gguf.identity import model_identity
from surgeon.measure.base_cache import Base, trim, used
from surgeon.measure.layer_files import repair_layers
from surgeon.measure.scratch import scan_folder
from surgeon.model.model import load_model
from surgeon.whole_files import written_whole
from surgeon.write_guard import REPLACE, Kind

Damage = TypeVar("Damage", LayerDamage, ExpertDamage)


def scanned(fleet: Fleet, job: PruneScanJob) -> Iterator[Message]:
    """The messages that the engine gives for this job, a Step for each task; LayerDamages come in any order."""
    job = replace(job, model=os.path.abspath(job.model), text=os.path.abspath(job.text))
    calls = {tuple(layers): (replace(job, layer_sets=[layers]),) for layers in job.layer_sets}
    yield Started(0, len(calls), job.n_ctx)
    for done, (_, damage) in enumerate(fleet.each(measure_candidate, calls, (job.model, job.text)), 1):
        yield damage
        yield Step(done, len(calls), {"workers": fleet.n_workers})
    yield Finished({})


def experts_scanned(fleet: Fleet, job: ExpertScanJob) -> Iterator[Message]:
    """As `scanned`, an ExpertDamage for each of the job's sets."""
    job = replace(job, model=os.path.abspath(job.model), text=os.path.abspath(job.text))
    calls = {number: (replace(job, sets=[sets]),) for number, sets in enumerate(job.sets)}
    yield Started(0, len(calls), job.n_ctx)
    for done, (number, damage) in enumerate(fleet.each(measure_cut, calls, (job.model, job.text)), 1):
        yield replace(damage, number=number)
        yield Step(done, len(calls), {"workers": fleet.n_workers})
    yield Finished({})


def measure_cut(here: Here, job: ExpertScanJob) -> ExpertDamage:
    """The damage of the job's only set of experts. Raises EngineError, Cancelled."""
    whole = PruneScanJob(job.model, job.text, [], job.n_ctx, job.n_ubatch, job.n_chunks)
    (sets,) = job.sets
    job = replace(job, sets=[], base=str(_base(here, whole)), base_is_made=True, more=True)
    return _asked(here, job, Silence(sets), ExpertDamage)


def measure_candidate(here: Here, job: PruneScanJob) -> LayerDamage:
    """The damage of the job's only set of layers. Raises EngineError, Cancelled."""
    base = _base(here, job)
    if not job.n_fit:
        return _with_warm_child(here, replace(job, base=str(base), base_is_made=True))
    with scan_folder() as folder:
        job = replace(job, base=str(base), base_is_made=True, folder=str(folder))
        model = load_model(Path(job.model))
        with model.file:
            job = replace(job, repairs=repair_layers(model, folder))
        for message in EngineRun(here.engine, job, here.cancelled).messages():
            if isinstance(message, LayerDamage):
                return message
    raise SurgeonError(f"{job.model}: layers {job.layer_sets[0]} were not measured")


def _with_warm_child(here: Here, job: PruneScanJob) -> LayerDamage:
    (layers,) = job.layer_sets
    return _asked(here, replace(job, layer_sets=[], more=True), LeaveOut(layers), LayerDamage)


def _asked(here: Here, job: PruneScanJob | ExpertScanJob, request: Message, answer: type[Damage]) -> Damage:
    """What the child that is kept for this job answers."""
    identity = model_identity(Path(job.model))  # the base's name has the text's
    with warm_run((job.base, identity, here.engine, repr(job)), here, lambda: EngineRun(here.engine, job)) as run:
        run.send(request)
        for message in run.until(answer):
            if isinstance(message, answer):
                return message
    raise SurgeonError(f"{job.model}: {request} was not measured")


def _base(here: Here, job: PruneScanJob) -> Path:
    """The whole model's log-probabilities as a scan needs them, made by the first task on this machine."""
    how = f"{find_libraries(here.engine.library).label} scan -ub {job.n_ubatch} -ngl {here.engine.n_gpu_layers}"
    path = Base(Path(job.model), Path(job.text), job.n_ctx, job.n_chunks, how, cache_folder()).path
    with alone(path, here):
        if path.is_file():
            used(path)
            return path
        with written_whole(path, Kind.LOGITS, REPLACE) as temporary:
            alone_job = replace(job, layer_sets=[], base=str(temporary), n_fit=0)
            for _ in EngineRun(here.engine, alone_job, here.cancelled).messages():
                pass
        trim(cache_folder())
    return path
