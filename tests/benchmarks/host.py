"""What an evaluation takes beside the model's forward passes, before and after its weights are loaded.

    cd ../shared/data/paper && OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \\
        python ~-/tests/benchmarks/host.py --model DIR --tasks mc_calib_indomain --apply-chat-template

Arguments are those of ``calibtune eval`` without ``--output``. DIR holds a model small enough for the CPU with the
tokenizer and chat template of a large one; its passes are replaced by ready-made answers. The bar: 1.5 s for 2,000
questions after the weights are loaded, so that on an H200 the passes of an 8B take four fifths of the time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

STARTED = time.perf_counter()


def main() -> None:
    """Measure and print."""
    from calibtune.__main__ import main as command
    from calibtune.evaluation import evaluate
    from calibtune.evaluation.hf_letters import LetterLM

    loaded, load = [], evaluate._load

    def timed(*args: Any) -> Any:
        model = load(*args)
        loaded.append(time.perf_counter())
        return model

    def ready(self: Any, prompts: Any, cluster: Any, cache: Any, wanted: Any) -> Any:
        # Others for each letter of each question, else there were ties.
        found = [(-1.0 - hash((prompts[row][-40:], tuple(ids))) % 1000 / 100, False) for row, ids in wanted]
        return lambda: found

    evaluate._load, LetterLM._answers = timed, ready
    with tempfile.TemporaryDirectory() as folder:
        code = command(["eval", *sys.argv[1:], "--output", folder])
    if code:
        sys.exit(code)
    ended = time.perf_counter()
    print(f"{loaded[0] - STARTED:.2f} s until the weights were loaded, {ended - loaded[0]:.2f} s after it")


if __name__ == "__main__":
    main()
