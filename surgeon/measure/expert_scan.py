"""A scan of experts from the parent's side: set after set, kept so that it can be resumed."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Engine, ExpertDamage, ExpertScanJob, Message
from surgeon.folders import make_private
from surgeon.gguf.file import shards_of
from surgeon.json_text import json_text, read_json
from surgeon.model.kinds import refuse_without_text
from surgeon.whole_files import write_whole
from surgeon.write_guard import Permit

Sets = Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Cut:
    """Experts to silence together. share: of all, in percent; layer: the one they are of, None for every layer."""

    share: float
    layer: int | None
    sets: Sets

    @property
    def count(self) -> int:
        """In one layer."""
        return len(next(iter(self.sets.values())))

    @property
    def key(self) -> str:
        """The same for the same experts, however they were chosen."""
        text = repr(sorted((layer, sorted(gone)) for layer, gone in self.sets.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, list[int]]:
        return {str(layer): sorted(gone) for layer, gone in self.sets.items()}


@dataclass
class ExpertScan:
    """Damage of silencing experts, measured cut after cut and kept in `state` (a JSON file).

    job: without sets; identity: what the figures belong to (model, text, chunks); another identity in the file makes it
    start anew; damages: by the key of their cut.
    """

    engine: Engine
    job: ExpertScanJob
    cuts: list[Cut]
    state: Path
    identity: str
    cancelled: threading.Event | None = None
    damages: dict[str, ExpertDamage] = field(default_factory=dict)
    run: EngineRun | None = None

    def load(self) -> None:
        """Take what an earlier run measured. Raises EngineError for a file that is not a state."""
        with suppress(FileNotFoundError):
            try:
                kept = read_json(self.state.read_bytes())
                if kept["identity"] == self.identity:
                    self.damages = {key: ExpertDamage(**damage) for key, damage in kept["damages"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EngineError(f"{self.state}: not a state file of expert-scan ({error}); remove it") from error

    def messages(self) -> Iterator[Message]:
        """The engine's messages for the cuts not measured yet; an ExpertDamage is on the disk when it is yielded."""
        missing = list({cut.key: cut for cut in self.cuts if cut.key not in self.damages}.values())
        if not missing:
            return
        # The folder is ours, so that nothing stays behind when the child is killed.
        with tempfile.TemporaryDirectory(prefix="surgeon-scan-") as folder:
            sets = [cut.as_json() for cut in missing]
            job = replace(self.job, sets=sets, base=str(Path(folder, "base.kld")))
            refuse_without_text(job.model)
            self.run = EngineRun(self.engine, job, self.cancelled)
            for message in self.run.messages():
                if isinstance(message, ExpertDamage):
                    self.damages[missing[message.number].key] = message
                    self._save()
                yield message

    def _save(self) -> None:
        kept = {"identity": self.identity, "damages": {key: vars(damage) for key, damage in self.damages.items()}}
        with suppress(OSError):  # the write says what is wrong
            make_private(self.state.parent)
        permit = Permit((*shards_of(Path(self.job.model)), Path(self.job.text)), replace=True)
        write_whole(self.state, json_text(kept), permit=permit)
