"""Which of a fit's checkpoints is whole: ``--resume`` goes on from no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from calibtune.files import write_text

#: Written into a checkpoint last, with the sizes of its files; a folder without it was cut off.
WHOLE = "whole.json"


def seal(folder: Path, step: int) -> None:
    """Say of a checkpoint that all of it is written.

    Args:
        folder: The checkpoint's.
        step: The step that it was taken after.
    """
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    write_text(folder / WHOLE, json.dumps({"step": step, "sizes": sizes}))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder, None where there is none."""
    sealed = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(filter(_is_whole, sealed), key=lambda path: int(path.name.split("-")[1]), default=None)


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that are not whole; Trainer would write the new ones into them."""
    for path in folder.glob("checkpoint-*"):
        if not _is_whole(path):
            shutil.rmtree(path)


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint still has what it was sealed with; those of earlier versions name no sizes."""
    try:
        sizes = json.loads((folder / WHOLE).read_text()).get("sizes", {})
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
