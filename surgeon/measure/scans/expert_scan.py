"""A scan of experts from the parent's side: set after set, kept so that it can be resumed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Engine, ExpertDamage, ExpertScanJob, Message
from surgeon.gguf.file import shards_of
from surgeon.json_text import json_text, read_json
from surgeon.measure.kept_figures import alone_in
from surgeon.measure.scratch import scan_folder
from surgeon.model.kinds import refuse_without_text
from surgeon.plan.plan import expert_sets_id
from surgeon.whole_files import write_whole
from surgeon.write_guard import Permit

Sets = Mapping[int, frozenset[int]]
EVERY_LAYER = -1  # in the state file


@dataclass(frozen=True)
class Cut:
    """Experts to silence together. share: of all, in percent; layer: the one they are of, None for every layer; by:
    what ranked them.
    """

    share: float
    layer: int | None
    sets: Sets
    by: str = "saliency"

    @property
    def count(self) -> int:
        """In one layer."""
        return len(next(iter(self.sets.values())))

    @property
    def key(self) -> str:
        """The same for the same experts, however they were chosen."""
        return expert_sets_id(self.sets)

    def as_json(self) -> dict[str, list[int]]:
        return {str(layer): sorted(gone) for layer, gone in self.sets.items()}


@dataclass
class ExpertScan:
    """Damage of silencing experts, measured cut after cut and kept in `state` (a JSON file).

    job: without sets; identity: what the figures belong to (model, text, chunks); another identity in the file makes it
    start anew; damages: by the key of their cut; forgotten: those in the file that are measured anew; labels: (key,
    share, layer, by) of what was ever measured, for those who read the state without knowing the cuts; elsewhere: gives
    a job's messages where it is not this machine's engine that runs it.
    """

    engine: Engine
    job: ExpertScanJob
    cuts: list[Cut]
    state: Path
    identity: str
    cancelled: threading.Event | None = None
    damages: dict[str, ExpertDamage] = field(default_factory=dict)
    forgotten: dict[str, ExpertDamage] = field(default_factory=dict)
    labels: set[tuple[str, float, int, str]] = field(default_factory=set)
    run: EngineRun | None = None
    elsewhere: Callable[[ExpertScanJob], Iterator[Message]] | None = None

    def load(self) -> None:
        """Take what an earlier run measured. Raises EngineError for a file that is not a state."""
        self.damages, self.labels = self._kept()

    def forget(self) -> None:
        """Measure anew what an earlier run measured; its figures stay in the file until there is one to keep."""
        self.damages, self.labels = {}, set()
        with suppress(EngineError):  # what is no state is written over
            self.forgotten = self._kept()[0]

    def _kept(self) -> tuple[dict[str, ExpertDamage], set[tuple[str, float, int, str]]]:
        try:
            kept = read_json(self.state.read_bytes())
            if kept["identity"] != self.identity:
                return {}, set()
            damages = {key: ExpertDamage(**damage) for key, damage in kept["damages"].items()}
            cuts = kept.get("cuts", ())
            return damages, {(str(key), float(share), int(at), str(by)) for key, share, at, by in cuts}
        except FileNotFoundError:
            return {}, set()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{self.state}: not a state file of expert-scan ({error}); remove it") from error

    def messages(self) -> Iterator[Message]:
        """The engine's messages for the cuts not measured yet; an ExpertDamage is on the disk when it is yielded."""
        missing = list({cut.key: cut for cut in self.cuts if cut.key not in self.damages}.values())
        if not missing:
            if not self._labels() <= self.labels:
                self._save()
            return
        refuse_without_text(self.job.model)
        job = replace(self.job, sets=[cut.as_json() for cut in missing])
        for message in self._here(job) if self.elsewhere is None else self.elsewhere(job):
            if isinstance(message, ExpertDamage):
                self.damages[missing[message.number].key] = message
                self._save()
            yield message

    def _here(self, job: ExpertScanJob) -> Iterator[Message]:
        # The folder is ours, so that nothing stays behind when the child is killed.
        with scan_folder() as folder:
            self.run = EngineRun(self.engine, replace(job, base=str(folder / "base.kld")), self.cancelled)
            yield from self.run.messages()

    def _labels(self) -> set[tuple[str, float, int, str]]:
        return {
            (cut.key, cut.share, EVERY_LAYER if cut.layer is None else cut.layer, cut.by)
            for cut in self.cuts
            if cut.key in self.damages
        }

    def _save(self) -> None:
        permit = Permit((*shards_of(Path(self.job.model)), Path(self.job.text)), replace=True)
        with alone_in(self.state.parent):
            with suppress(EngineError):  # what damaged it meanwhile takes nothing of ours
                added, labels = self._kept()
                added = {key: one for key, one in added.items() if self.forgotten.get(key) != one}
                self.damages = added | self.damages
                self.labels |= {label for label in labels if label[0] in self.damages}
            self.labels |= self._labels()
            damages = {key: vars(damage) for key, damage in self.damages.items()}
            kept = {"identity": self.identity, "damages": damages, "cuts": sorted(self.labels)}
            write_whole(self.state, json_text(kept), permit=permit)
