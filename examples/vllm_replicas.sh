#!/usr/bin/env bash
# Evaluate a model with one vLLM replica a GPU, a shard each, side by side:
#
#     MODEL=allenai/OLMo-2-1124-7B-DPO GPUS=8 examples/vllm_replicas.sh
#     python -m calibtune report out --output report
#
# A model that needs several GPUs: fewer replicas, and EXTRA="--model-args tensor_parallel_size=2" with STEP=2.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)} step=${STEP:-1}
replicas=$((gpus / step)) jobs=()
for ((i = 0; i < replicas; i++)); do
  CUDA_VISIBLE_DEVICES=$(seq -s, $((i * step)) $((i * step + step - 1))) \
    python -m calibtune eval --backend "${BACKEND:-vllm}" --model "${MODEL:?name a model}" \
    --tasks "${TASKS:-mc_calib_indomain,mc_calib_arc_merged}" --shard "$((i + 1))/$replicas" \
    --output "${OUT:-out}/shard-$((i + 1))" ${EXTRA:-} &
  jobs+=($!)
done
failed=0
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
exit $failed
