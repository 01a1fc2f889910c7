"""Show a training run's steps, loss and time left. Apart from progress.py, for transformers' callbacks load peft."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from transformers import TrainerCallback

from calibtune.bar import Bar

logger = logging.getLogger(__name__)


class Progress(TrainerCallback):
    """Show steps, loss and time left: as a bar in a terminal, elsewhere as a line each tenth of the steps.

    Trainer's own callbacks print each entry of the log as a Python dictionary, and estimate the time from the first
    step, which takes many times longer than the others.
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._first, self._begun = 0, 0.0
        self._losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a bar where the steps done stand, after a resume too."""
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = Bar(total=state.max_steps, initial=state.global_step, unit="step", smoothing=0)
        self._first, self._begun = state.global_step, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        if not state.is_world_process_zero:
            return
        if self._bar is not None:
            self._bar.update()
            return
        if not self._begun:
            self._first, self._begun = state.global_step, time.monotonic()
        elif state.global_step % max(state.max_steps // 10, 1) == 0 and state.global_step < state.max_steps:
            done = state.global_step - self._first
            left = (time.monotonic() - self._begun) / done * (state.max_steps - state.global_step)
            loss = f", loss {self._losses[-1]:.3f}" if self._losses else ""
            logger.info("step %d of %d%s, about %.0f s left", state.global_step, state.max_steps, loss, left)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self._losses.append(float(logs["loss"]))
            if self._bar is not None:
                self._bar.set_postfix_str(f"loss {self._losses[-1]:.3f}", refresh=False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say the epoch's mean loss."""
        if state.is_world_process_zero and self._losses:
            logger.info("epoch %d: training loss %.4f", round(state.epoch or 0), sum(self._losses) / len(self._losses))
        self._losses = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
