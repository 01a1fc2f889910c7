"""Mark and find complete checkpoints, from which ``--resume`` continues a fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from calibtune.files import write_text

#: File written last into a checkpoint, with the sizes of the others; without it, it is incomplete.
WHOLE = "whole.json"


def seal(folder: Path, step: int) -> None:
    """Mark a checkpoint as complete.

    Args:
        folder: Folder of the checkpoint.
        step: Number of steps trained before it.
    """
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    write_text(folder / WHOLE, json.dumps({"step": step, "sizes": sizes}))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None."""
    sealed = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(filter(_is_whole, sealed), key=lambda path: int(path.name.split("-")[1]), default=None)


def remove_unfinished(folder: Path) -> None:
    """Remove incomplete checkpoints, because Trainer would write new ones into their folders."""
    for path in folder.glob("checkpoint-*"):
        if not _is_whole(path):
            shutil.rmtree(path)


def _is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is marked as complete and its files have the recorded sizes."""
    try:
        sizes = json.loads((folder / WHOLE).read_text()).get("sizes", {})
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
