"""What the fleet reports to the user."""

from __future__ import annotations

from surgeon.errors import SurgeonError

INSTALL = "pip install 'gguf-surgeon[fleet]'"


class FleetError(SurgeonError):
    """The scheduler or a worker could not do it: one line that names it, with what was found and what to do."""
