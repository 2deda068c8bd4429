"""The workers of a Dask scheduler behind a job of the screen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgeon.engine.protocol import Engine
    from surgeon.fleet.cluster import Fleet


class Workers:
    """address: the scheduler's, None for this machine alone; engine: as it runs here."""

    def __init__(self, address: str | None = None, engine: Engine | None = None) -> None:
        self.address, self._engine = address, engine
        self._fleet: Fleet | None = None

    @contextmanager
    def joined(self, cancelled: threading.Event, *, needs_engine: bool = True) -> Iterator[Fleet | None]:
        """The connected fleet; None for this machine alone. Raises FleetError, EngineError, Cancelled."""
        if self.address is None or self._engine is None:
            yield None
            return
        from surgeon.fleet.cluster import Fleet

        with Fleet(self.address, self._engine, cancelled, needs_engine=needs_engine) as self._fleet:
            yield self._fleet

    @property
    def standing(self) -> str:
        """`3 workers · 12/40 tasks`; '' on this machine alone, and before they are connected."""
        return "" if self._fleet is None else self._fleet.standing


def with_workers(text: str, standing: str, *, first: bool = False) -> str:
    """`prune-scan 30% · 3 workers · 12/40 tasks`; first: the workers first."""
    parts = (standing, text) if first else (text, standing)
    return " · ".join(part for part in parts if part)
