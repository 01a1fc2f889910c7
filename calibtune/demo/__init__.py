"""Train and ship a small language model of a generated world whose true probabilities are known."""

from pathlib import Path

#: Harness tasks about the world, in and out of the training domain.
IN_DOMAIN, OUT_DOMAIN = "mc_calib_world", "mc_calib_world_ood"
#: The two shipped models: calibrated by pre-training, then made overconfident by DPO.
CHECKPOINTS = Path(__file__).parent / "checkpoints"
PRETRAINED, ALIGNED = CHECKPOINTS / "pretrained", CHECKPOINTS / "aligned"
