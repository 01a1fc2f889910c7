"""Tell the first of several processes from the others."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this process prints and writes: alone, or the first under torchrun or accelerate."""
    return int(os.environ.get("RANK", "0")) == 0
