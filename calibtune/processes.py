"""Find out whether this is the first of several processes."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first under torchrun or accelerate.

    Only this process prints and writes.
    """
    return int(os.environ.get("RANK", "0")) == 0
