"""A scan of layers from the parent's side: set after set, kept so that it can go on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Engine, LayerDamage, Message, PruneScanJob
from surgeon.folders import state_folder
from surgeon.gguf.file import shards_of
from surgeon.gguf.identity import open_identity
from surgeon.json_text import json_text, read_json
from surgeon.measure.kept_figures import alone_in
from surgeon.measure.layer_files import repair_layers
from surgeon.measure.scratch import scan_folder
from surgeon.measure.speeds import HEALED_SCAN, SCAN, Speeds, timed
from surgeon.model.kinds import refuse_without_text
from surgeon.model.model import Model
from surgeon.whole_files import write_whole
from surgeon.write_guard import Permit


def open_scan(engine: Engine, model: Model, job: PruneScanJob, *, restart: bool = False) -> PruneScan:
    """The scan that `job` (without base and folder) asks for, with what an earlier run measured unless `restart`.

    n_fit > 0: measured after the matrix before each gap is refitted. Raises SurgeonError, EngineError.
    """
    digest = hashlib.sha256(Path(job.text).read_bytes()).hexdigest()[:16]
    identity = f"{open_identity(model.file)}-{digest}-c{job.n_ctx}-n{job.n_chunks}"
    if job.n_fit:
        identity += f"-healed{job.n_fit}"
    scan = PruneScan(engine, job, state_folder() / "prune-scan" / f"{identity}.json", identity)
    if job.n_fit:
        scan.repairs_of = lambda folder: repair_layers(model, folder)
    if restart:
        scan.forget()
    else:
        scan.load()
    return scan


@dataclass
class PruneScan:
    """Damage of leaving layers out, measured set after set and kept in `state` (a JSON file) so that it can go on.

    identity: what the figures belong to (model, text, chunks); another identity in the file makes it start anew.
    forgotten: figures in the file that are measured anew; what another run has added since counts.
    elsewhere: gives a job's messages where it is not this machine's engine that runs it.
    """

    engine: Engine
    job: PruneScanJob
    state: Path
    identity: str
    cancelled: threading.Event | None = None
    damages: dict[tuple[int, ...], LayerDamage] = field(default_factory=dict)
    forgotten: dict[tuple[int, ...], LayerDamage] = field(default_factory=dict)
    run: EngineRun | None = None
    repairs_of: Callable[[Path], list[dict[str, Any]]] | None = None  # PruneScanJob.repairs, their arrays in a folder
    elsewhere: Callable[[PruneScanJob], Iterator[Message]] | None = None

    def load(self) -> None:
        """Take what an earlier run measured. Raises EngineError for a file that is not a state."""
        self.damages = self._kept()

    def forget(self) -> None:
        """Measure anew what an earlier run measured; its figures stay in the file until there is one to keep."""
        self.damages = {}
        with suppress(EngineError):  # what is no state is written over
            self.forgotten = self._kept()

    def _kept(self) -> dict[tuple[int, ...], LayerDamage]:
        try:
            kept = read_json(self.state.read_bytes())
            found = [LayerDamage(**damage) for damage in kept["damages"]] if kept["identity"] == self.identity else []
            return {tuple(damage.layers): damage for damage in found}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.state}: not a state file of prune-scan ({error}); remove it") from error

    def messages(self) -> Iterator[Message]:
        """The engine's messages for the sets not measured yet; a LayerDamage is on the disk when it is yielded."""
        missing = [layers for layers in self.job.layer_sets if tuple(layers) not in self.damages]
        if not missing:
            return
        refuse_without_text(self.job.model)
        job = replace(self.job, layer_sets=missing)
        for message in self._here(job) if self.elsewhere is None else self.elsewhere(job):
            if isinstance(message, LayerDamage):
                self.damages[tuple(message.layers)] = message
                self._save()
            yield message

    def _here(self, job: PruneScanJob) -> Iterator[Message]:
        # The folder is ours, so that nothing stays behind when the child is killed.
        with scan_folder() as folder:
            job = replace(job, base=str(folder / "base.kld"), folder=str(folder))
            if self.repairs_of is not None:
                job = replace(job, repairs=self.repairs_of(folder))
            self.run = EngineRun(self.engine, job, self.cancelled)
            speeds, kind = Speeds.of(Path(job.model), self.engine), HEALED_SCAN if job.n_fit else SCAN
            yield from timed(self.run.messages(), speeds, kind, job.n_ctx)

    def _save(self) -> None:
        permit = Permit((*shards_of(Path(self.job.model)), Path(self.job.text)), replace=True)
        with alone_in(self.state.parent):
            kept: dict[tuple[int, ...], LayerDamage] = {}
            with suppress(EngineError):  # what damaged it meanwhile takes nothing of ours
                kept = self._kept()
            added = {layers: one for layers, one in kept.items() if self.forgotten.get(layers) != one}
            self.damages = added | self.damages
            damages = [vars(damage) for damage in self.damages.values()]
            write_whole(self.state, json_text({"identity": self.identity, "damages": damages}), permit=permit)
