"""The compute buffers of a context, as this llama.cpp allocates them."""

from __future__ import annotations

import re
import threading

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Engine, MemoryJob
from surgeon.fit.vram import Card, Demand, cache_bytes
from surgeon.model.model import Model
from surgeon_kernels.formats import FORMATS

_BUFFER = re.compile(r"sched_reserve:\s+(\S+) compute buffer size =\s*([0-9.]+) MiB")


def demand(model: Model, card: Card, engine: Engine, cancelled: threading.Event | None = None) -> Demand:
    """What the card must hold beside the weights. Raises EngineError, UsageError."""
    cache = cache_bytes(model, card)
    job = MemoryJob(str(model.file.paths[0]), card.n_ctx, card.parallel, card.n_ubatch, FORMATS[card.cache_type].number)
    run = EngineRun(engine, job, cancelled)
    for _ in run.messages():
        pass
    sizes = compute_buffers(run.log_text())
    if not sizes:
        raise EngineError(f"{run.log}: llama.cpp did not log the size of its compute buffers")
    # Where there is a card its buffers count; elsewhere those of the processor, which are much alike.
    devices = [nbytes for name, nbytes in sizes.items() if not name.startswith("CPU") and "Host" not in name]
    return Demand(cache, max(devices, default=0) or max(sizes.values()), card.reserve)


def compute_buffers(log: str) -> dict[str, int]:
    """Device -> bytes of its compute buffer, of the last context in the log."""
    return {name: round(float(size) * (1 << 20)) for name, size in _BUFFER.findall(log)}
