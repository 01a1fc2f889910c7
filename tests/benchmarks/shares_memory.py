"""Memory of each process of a fit that FSDP 2 splits, beside a share of the model and its largest layer.

    python tests/benchmarks/shares_memory.py --processes 2 4 [--device cuda] [--hidden 1536] [--layers 12]

The whole command runs in each process on a Llama with random float32 weights: loaded, scored, trained, written. Its
memory is what it has more than before the model is loaded: the peak of /proc's statm, read every 5 ms, and the pages
of the model's file that it has mapped, up to what it reads of it, since the kernel maps more. On GPUs, the peak of what
torch has allocated comes beside it. "beside" is what one process that has the whole model has at the same point without
the weights: activations, Python's objects. The rest is held of the weights, with all copies of them. glibc is told to
return freed memory at once. ``--whole`` loads as before shares could be read. On CPUs the processes talk through gloo.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from cpu_fsdp import FSDP2, launched, use_gloo
from fitting import words
from quick_python import quick_python
from safetensors import safe_open
from tiny import save_tiny, write_arc_mirror

#: Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Points at which the peak so far is noted.
POINTS = ("loaded", "scored", "ended")


def main() -> None:
    """Run the fits and print one line of JSON for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--tuning", default="lora")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arc_mirror(folder / "hub")
        model = save_tiny(folder / "model", hidden=args.hidden, layers=args.layers, vocabulary=args.vocabulary)
        rows = compare(folder, model, args.processes, args)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


def compare(folder: Path, model: Path, processes: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit a model in one process, then in each number of processes; return MB of each process at each point."""
    size, layer = sizes(model)
    (one,) = measure(folder, model, 1, args)
    # On the host the one process has mapped the weights and holds none of its own.
    beside = {kind: np.subtract(peaks, size if kind == "gpu" else 0).clip(0).round(1) for kind, peaks in one.items()}
    rows = []
    for count in processes:
        found = measure(folder, model, count, args)
        row = {"processes": count, "device": args.device, "tuning": args.tuning, "whole": args.whole}
        row |= {"model": size, "largest_layer": layer, "bound": round(size / count + layer, 1)}
        for kind, without in beside.items():
            peaks = np.array([process[kind] for process in found])
            row[kind] = dict(zip(POINTS, (peaks - without).round(1).T.tolist(), strict=True))
            row[f"{kind}_beside"] = dict(zip(POINTS, without.tolist(), strict=True))
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def sizes(model: Path) -> tuple[float, float]:
    """Return the size of a model and of its largest layer, in MB."""
    total: dict[str, int] = {}
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open gives no iterator)
                tensor = tensors.get_tensor(name)
                layer = name.split(".")[2] if ".layers." in name else name
                total[layer] = total.get(layer, 0) + tensor.numel() * tensor.element_size()
    return round(sum(total.values()) / 1e6, 1), round(max(total.values()) / 1e6, 1)


def measure(folder: Path, model: Path, processes: int, args: argparse.Namespace) -> list[dict[str, list[float]]]:
    """Fit in so many processes and return the peaks of each."""
    device = None if args.device == "cuda" else "cpu"
    changes = {"max_steps": 2, "batch_size": 1, "device": device, "tuning": args.tuning}
    fit = [*words(model, folder / "out", "cft", **changes), "--gradient-checkpointing", "--overwrite"]
    hidden = {} if args.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    whole = {"WHOLE": "1"} if args.whole else {}
    split = FSDP2 if processes > 1 else {}
    environment = {**os.environ, **split, **hidden, **whole, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    share = 0 if processes == 1 else sizes(model)[0] / (1 if args.whole else processes)
    environment |= {"PEAKS": str(folder), "SHARE": str(share)}
    command = launched(__file__, fit, processes)
    done = subprocess.run(
        [quick_python(), *map(str, command)], cwd=folder / "hub", env=environment, capture_output=True, text=True
    )
    if done.returncode or ("each process holds all of" in done.stderr and not args.whole):
        raise SystemExit(done.stderr)
    return [json.loads((folder / f"peaks-{rank}.json").read_text()) for rank in range(processes)]


def work(folder: Path) -> None:
    """Run the command in this process, and write its peaks."""
    import torch

    from calibtune import __main__
    from calibtune.models import loading
    from calibtune.tuning import fit

    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        assert ctypes.CDLL(None).mallopt(threshold, 65536)
    gpu = torch.cuda.is_available()
    if not gpu:
        use_gloo()
    if os.environ.get("WHOLE"):
        loading.share_options = lambda *args: {}
    peaks: dict[str, list[float]] = {"host": []} | ({"gpu": []} if gpu else {})
    anonymous, start = 0.0, 0.0

    def watch() -> None:
        nonlocal anonymous
        while True:
            anonymous = max(anonymous, resident())
            time.sleep(0.005)

    def begin(function: Any) -> Any:
        def begun(*args: Any, **options: Any) -> Any:
            nonlocal start
            start = resident()
            threading.Thread(target=watch, daemon=True).start()
            return function(*args, **options)

        return begun

    def note() -> None:
        now = anonymous - start + min(mapped(), float(os.environ["SHARE"]))
        peaks["host"].append(max([*peaks["host"], now]))
        if gpu:
            peaks["gpu"].append(torch.cuda.max_memory_allocated() / 1e6)

    def noted(function: Any) -> Any:
        def then(*args: Any, **options: Any) -> Any:
            note()
            return function(*args, **options)

        return then

    fit.load_base = begin(fit.load_base)
    loading.check_loaded = noted(loading.check_loaded)
    fit.add_adapter = noted(fit.add_adapter)
    code = __main__.main(sys.argv[1:])
    note()
    (folder / f"peaks-{os.environ['RANK']}.json").write_text(json.dumps(peaks))
    sys.exit(code)


def resident() -> float:
    """Return the MB of this process that are no pages of files."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 1e6


def mapped() -> float:
    """Return the MB of *.safetensors that this process has mapped and that are in memory."""
    total, counted = 0.0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counted = line.endswith(".safetensors")
        elif counted and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024 / 1e6
    return total


if __name__ == "__main__":
    work(Path(os.environ["PEAKS"])) if "PEAKS" in os.environ else main()
