#!/usr/bin/env bash
# Everything that needs a GPU, most wanted first; what is finished stays in OUT if the machine is taken away.
#
#   tests/benchmarks/accelerator.sh MODEL HUB OUT      MODEL: Qwen2.5-Coder-0.5B-Instruct, as ../shared/tools/real_model.py makes it
#                                                      HUB: the data mirror, ../shared/data/hub
# Part by part (`tests/benchmarks/accelerator.sh MODEL HUB OUT table`): table, test, big, small, scoring. The table takes up to 139 GiB of
# the GPU's memory; started again it goes on where it stopped.
set -uo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
model=$(realpath "$1") hub=$(realpath "$2") out=$(mkdir -p "$3" && realpath "$3")
export PYTHONPATH=$repo${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
speed="python3 $repo/tests/benchmarks/fit_speed.py --steps 0 --json $out/speed.jsonl"

table() { # three seeds of each method
  (cd "$hub" && OMP_NUM_THREADS=2 python3 "$repo/tests/benchmarks/tuning_table.py" run --model "$model" --output "$out/table" \
    --parallel 6 --eval-extra "--batch-size 16" --configs "${CONFIGS:-cft;rcft;label-smoothing;rcft as in the paper;base}")
}
test_() { (cd "$repo" && python3 -m pytest -q -p no:cacheprovider -m accelerator tests); }
big() { # 8B, QLoRA, then a bfloat16 base; what is compiled or patched by Liger comes after what is not
  $speed --quantisation nf4 --ways check,authors,ours,estep,score,ours+peft,trl --batch-sizes 16,32 --rows 640
  $speed --quantisation nf4 --ways authors,ours+liger,estep+liger,score+liger,trl+liger --batch-sizes 64,32 --rows 960
  $speed --quantisation nf4 --ways ours --methods rcft --batch-sizes 2 --rows 200
  $speed --methods cft --ways check,ours,score,ours+liger,score+liger --batch-sizes 32 --rows 640
  $speed --quantisation nf4 --ways ours+liger --methods cft --batch-sizes 32 --rows 1280 --steps 120 \
    --recipe-extra cuda_graphs=true,liger_kernel=true
  $speed --quantisation nf4 --ways ours+compile --batch-sizes 32 --rows 960 --seconds 15
}
small() { # bound by kernel launches
  for shape in 0.5b 135m; do
    $speed --shape $shape --ways plain,ours --batch-sizes 16 --rows 640
    $speed --shape $shape --ways ours --batch-sizes 16 --steps 300 --seconds 20 --recipe-extra cuda_graphs=true
  done
}
scoring() { # hf-prefix against the stock backend
  (cd "$hub" && python3 "$repo/tests/benchmarks/scoring.py" --model "$model" --dtype bfloat16 --device cuda --limit 200)
}
for part in ${4:-table test big small scoring}; do
  [ "$part" = test ] && part=test_
  "$part" 2>&1 | tee "$out/$part.log"
done
