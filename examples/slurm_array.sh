#!/usr/bin/env bash
# Evaluate a model in shards, one GPU each:
#
#     MODEL=allenai/OLMo-2-1124-7B-DPO sbatch examples/slurm_array.sh
#     python -m calibtune report out --output report      # when all jobs have ended
#
# A job that was killed is submitted again by its number: sbatch --array=3 examples/slurm_array.sh with SHARDS=8.
#SBATCH --job-name=calibtune
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --time=01:00:00
set -euo pipefail
shard=$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}
# EXTRA: further flags, such as "--apply-chat-template --artifact runs/rcft".
python -m calibtune eval --model "${MODEL:?name a model}" --tasks "${TASKS:-mc_calib_indomain,mc_calib_arc_merged}" \
    --shard "$shard" --output "${OUT:-out}/shard-$SLURM_ARRAY_TASK_ID" ${EXTRA:-}
