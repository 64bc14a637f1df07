"""Which of several processes this one is, as torchrun and accelerate tell it before anything else is up."""

from __future__ import annotations

import os


def world_size() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes and tells."""
    return int(os.environ.get("RANK", "0")) == 0
