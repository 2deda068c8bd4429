"""What this machine offers to this process."""

from __future__ import annotations

import os

MOST_THREADS = 512
"""As many as ggml knows; a larger number is a slip, and each thread costs memory."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
