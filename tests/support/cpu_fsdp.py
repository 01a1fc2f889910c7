"""calibtune under accelerate's FSDP on CPUs; without this, accelerate takes FSDP there for plain data parallelism."""

import os
import runpy
import sys

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType

import calibtune.tuning.losses
from calibtune.tuning.trainer import CalibrationTrainer


def gloo(self, cpu=False, sagemaker_dp=False, backend=None):
    """In place of accelerate's choice: GPUs, as far as it knows, that talk through gloo."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return "gloo", DistributedType.MULTI_GPU


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
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = gloo
    # Prompts of other lengths than the other process's take another number of chunks.
    calibtune.tuning.losses.CHUNK = 64
    stop_after = int(os.environ.get("STOP_AFTER", sys.maxsize))
    CalibrationTrainer.compute_loss = split_and_stopped(CalibrationTrainer.compute_loss, stop_after)
    runpy.run_module("calibtune", run_name="__main__", alter_sys=True)
