"""What the engine reports to the user."""

from __future__ import annotations

from surgeon.errors import SurgeonError

INSTALL = "pip install 'gguf-surgeon[engine]'"


class EngineError(SurgeonError):
    """llama.cpp could not do it: one line with what was found and what to do."""


class EngineMissing(EngineError):  # noqa: N818 - reads as the state it names
    """No llama.cpp that can be used is installed."""


class EngineDied(EngineError):  # noqa: N818 - reads as the state it names
    """The engine's process ended, or was ended because it gave no sign of life; a new one may do better."""
