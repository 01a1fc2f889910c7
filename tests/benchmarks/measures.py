"""How long the calibration maths takes: every metric of a million questions, and conf-ECE against other libraries.

    OMP_NUM_THREADS=1 python tests/benchmarks/measures.py [--rows 1000000] [--repeat 7]

Prints a table of the best of the repeats, in seconds: wall time, and CPU time for machines with other work to do. The
bars: the harness's table of one million 4-option questions under 1 s on one core, conf-ECE ahead of torchmetrics and
netcal; and of 2,000 questions (``--rows 2000``) all metrics far below 1 s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np


def best(function: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Smallest wall and CPU seconds of several calls."""
    walls, cpus = [], []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()

    import torch
    from netcal.metrics import ECE
    from torchmetrics.functional.classification import multiclass_calibration_error

    from calibtune.results.measures import floor_measures, further_measures, harness_measures, refinement_measures
    from harness_ext.calibration import conf_ece

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), args.rows)
    gold = rng.integers(4, size=args.rows)
    loglikelihoods = np.log(probs) - 0.1
    tensors = torch.tensor(probs), torch.tensor(gold)
    rows = {
        "the harness's table, 4 intervals": lambda: harness_measures(loglikelihoods, gold),
        "further measures": lambda: further_measures(loglikelihoods, gold),
        "  of them floors and p-values": lambda: floor_measures(loglikelihoods, gold),
        "  of them refinement": lambda: refinement_measures(loglikelihoods, gold),
        "conf-ECE": lambda: conf_ece(probs, gold),
        "  torchmetrics": lambda: multiclass_calibration_error(*tensors, 4, 10),
        "  torchmetrics, unchecked": lambda: multiclass_calibration_error(*tensors, 4, 10, validate_args=False),
        "  netcal": lambda: ECE(10).measure(probs, gold),
    }
    print(f"{args.rows:,} questions of 4 options; best of {args.repeat}\n{'':36}   wall s    CPU s")
    for name, function in rows.items():
        wall, cpu = best(function, args.repeat)
        print(f"{name:36} {wall:8.3f} {cpu:8.3f}", flush=True)


if __name__ == "__main__":
    main()
