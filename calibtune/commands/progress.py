"""Show the steps of a command that is no loop over questions."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from calibtune.text import visible


@contextlib.contextmanager
def steps_of(work: str) -> Iterator[Callable[[str], None]]:
    """Show a bar of a command's steps, and give the function that counts and names one."""
    from tqdm import tqdm

    with tqdm(unit="step", delay=1, leave=False, desc=work) as bar:

        def step(text: str) -> None:
            bar.set_postfix_str(visible(text), refresh=False)
            bar.update()

        yield step


def write_page(write: Callable[..., Path], args: argparse.Namespace) -> Path:
    """Write a page by ``calibtune.report`` or ``calibtune.regime``, with a bar and a process for each core."""
    from calibtune.parallel import cores

    with steps_of(write.__name__) as step:
        return write(
            args.folders,
            args.output,
            base=args.base,
            labels=args.label,
            overwrite=args.overwrite,
            step=step,
            processes=cores(),
        )
