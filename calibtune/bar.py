"""A progress bar whose first estimate can be believed."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """tqdm's bar, shown after two seconds, with an estimate that leaves the first pass out.

    The first pass loads kernels and takes many times longer than the others. A batch is counted question by question
    once its pass is over, so tqdm's own first estimate is that of one question in the time of a batch: hours for a run
    of a minute.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"delay": 2, "mininterval": 0.5} | options))
        self._begun = False

    def update(self, n: float | None = 1) -> bool | None:
        """Count ``n`` more; the clock starts with the first."""
        if not self._begun and not self.disable:
            self._begun = True
            self.start_t = self.last_print_t = self._time()
        return super().update(n)

    def __iter__(self) -> Any:
        """Iterate, counting each turn when it is done."""
        for item in self.iterable:
            yield item
            self.update()
        self.close()
