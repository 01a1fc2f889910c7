"""calibtune under accelerate's FSDP on CPUs; without this, accelerate takes FSDP there for plain data parallelism."""

import os
import runpy
import socket
import sys
from pathlib import Path

#: Environment that `accelerate launch` sets for FSDP 2 as `accelerate config` writes it.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def free_port():
    """A port of loopback on which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launched(script, arguments, processes=2):
    """The words after ``python`` that run a script in several processes.

    A rendezvous by c10d finds a port by itself, and looks through all loaded modules for seconds to write its log.
    """
    place = ["--nproc_per_node", processes, "--master-addr", "127.0.0.1", "--master-port", free_port()]
    return ["-m", "torch.distributed.run", *place, script, *arguments]


def use_gloo():
    """Let accelerate split models over processes on CPUs."""
    import torch.distributed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def gloo(self, cpu=False, sagemaker_dp=False, backend=None):
        """In place of accelerate's choice: GPUs, as far as it knows, that talk through gloo."""
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = gloo


def split_and_stopped(compute_loss, stop_after):
    """The loss of a model that is surely split; ends the process after some steps, as a kill would."""
    done = []

    def loss(self, model, *args, **kwargs):
        assert self.accelerator.is_fsdp2
        assert self.args.world_size == 2
        assert type(model).__name__.startswith("FSDP")
        done.append(1)
        if len(done) > stop_after:
            os._exit(9)
        return compute_loss(self, model, *args, **kwargs)

    return loss


if __name__ == "__main__":
    import calibtune.tuning.losses
    from calibtune.tuning.trainer import CalibrationTrainer

    use_gloo()
    # Prompts of other lengths than the other process's take another number of chunks.
    calibtune.tuning.losses.CHUNK = 64
    stop_after = int(os.environ.get("STOP_AFTER", sys.maxsize))
    CalibrationTrainer.compute_loss = split_and_stopped(CalibrationTrainer.compute_loss, stop_after)
    # The folder of this script holds modules of the tests.
    sys.path.remove(str(Path(__file__).parent))
    runpy.run_module("calibtune", run_name="__main__", alter_sys=True)
