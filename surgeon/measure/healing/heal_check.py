"""Plain prune and healed prune side by side: KL divergence from the unpruned model on texts that were not fitted."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from surgeon.engine.client import EngineRun, perplexity
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import DivergenceJob, Engine, Finished, PerplexityJob
from surgeon.errors import SurgeonError
from surgeon.healing.heal_file import HeldOut
from surgeon.measure.base_cache import Base, trim, used
from surgeon.measure.progress import Standing, followed
from surgeon.measure.speeds import BASE, DIVERGENCE, Speeds, timed
from surgeon.model.model import Model
from surgeon.plan.plan import Healing, Plan
from surgeon.resolve.resolve import resolve
from surgeon.write.operation import WriteOptions, write


@dataclass
class HeldOutCheck:
    """texts are measured over n_chunks chunks each; bases are kept in `cache`, models written into `folder`."""

    model: Model
    pruned: frozenset[int]
    texts: tuple[Path, ...]
    n_chunks: int
    n_ctx: int
    know_risks: bool
    engine: Engine
    cache: Path
    folder: Path
    cancelled: threading.Event
    stages: int
    _plain: list[tuple[float, float]] = field(default_factory=list)

    @cached_property
    def _speeds(self) -> Speeds:
        return Speeds.of(self.model.file.paths[0], self.engine)

    def compared(self, healing: Healing) -> Generator[Standing, None, tuple[HeldOut, ...]]:
        """Measure the healed model, and once the plain one. Raises SurgeonError, EngineError or Cancelled."""
        if not self._plain:
            self._plain = yield from self._measured("pruned", None)
        healed = yield from self._measured("healed", healing)
        names = [text.name for text in self.texts]
        rows = zip(names, self._plain, healed, strict=True)
        return tuple(HeldOut(name, plain[0], now[0], plain[1], now[1]) for name, plain, now in rows)

    def _measured(self, what: str, healing: Healing | None) -> Generator[Standing, None, list[tuple[float, float]]]:
        path = self.folder / f"{what}.gguf"
        self._write(path, healing)
        found = []
        for text in self.texts:
            base = self._base(text)
            if not base.path.is_file():
                yield from self._save_base(base)
            used(base.path)
            stage = f"{what}, {text.name}"
            run = EngineRun(self.engine, DivergenceJob(str(path), str(base.path)), self.cancelled)
            messages = timed(run.messages(), self._speeds, DIVERGENCE, self.n_ctx)
            for item in followed(messages, stage, "chunks", self.stages - 1, self.stages):
                if isinstance(item, Finished):
                    found.append((float(item.values["mean_kld"]), float(item.values["mean_kld_error"])))
                elif isinstance(item, Standing):
                    yield item
        path.unlink()
        return found

    def _write(self, path: Path, healing: Healing | None) -> None:
        plan = Plan(pruned=self.pruned, know_risks=self.know_risks, healing=healing)
        for _ in write(resolve(self.model, plan), None, path, WriteOptions(), self.cancelled):
            pass

    def _base(self, text: Path) -> Base:
        label = find_libraries(self.engine.library).label
        return Base(self.model.file.paths[0], text, self.n_ctx, self.n_chunks, label, self.cache)

    def _save_base(self, base: Base) -> Iterator[Standing]:
        try:
            base.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SurgeonError(f"{base.path.parent}: cannot be made: {error.strerror}") from error
        job = PerplexityJob(
            str(base.model), str(base.text), base.n_ctx, n_chunks=base.n_chunks, save_base=str(base.path)
        )
        run = EngineRun(self.engine, job, self.cancelled)
        stage = f"unchanged, {base.text.name}"
        messages = timed(perplexity(run), self._speeds, BASE, self.n_ctx)
        for item in followed(messages, stage, "chunks", self.stages - 1, self.stages):
            if isinstance(item, Standing):
                yield item
        trim(self.cache)
