"""A small language model of a world whose truth is known: its tokenizer, its training, its shipped checkpoints."""

from pathlib import Path

#: Harness tasks about the world, in and out of the domain that the fits train on.
IN_DOMAIN, OUT_DOMAIN = "mc_calib_world", "mc_calib_world_ood"
#: The two shipped models: calibrated by pre-training, then made overconfident by DPO.
CHECKPOINTS = Path(__file__).parent / "checkpoints"
PRETRAINED, ALIGNED = CHECKPOINTS / "pretrained", CHECKPOINTS / "aligned"
