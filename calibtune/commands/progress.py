"""Show the steps of a command that is no loop over questions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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
