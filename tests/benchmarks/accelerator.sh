#!/usr/bin/env bash
# Everything that needs a GPU, most wanted first; what is finished stays in OUT if the machine is taken away.
#
#   tests/benchmarks/accelerator.sh MODEL HUB OUT      MODEL: Qwen2.5-Coder-0.5B-Instruct, as ../shared/tools/real_model.py makes it
#                                                      HUB: the data mirror, ../shared/data/hub
# SMALL_TOKENIZER: folder of a model with at most 128,256 tokens, such as SmolLM2-135M-Instruct, for scoring's 8B
# Part by part (`tests/benchmarks/accelerator.sh MODEL HUB OUT table`): table, test, big, defaults, small, scoring, ideas, again, packing. The table takes up to 139 GiB of
# the GPU's memory; started again it goes on where it stopped. On two GPUs: two, fsdp, shares. On another pool: harder.
# CONFIGS, PARALLEL, TRAIN_EXTRA: tuning_table.py's flags of these names, for table and harder.
set -uo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
model=$(realpath "$1") hub=$(realpath "$2") out=$(mkdir -p "$3" && realpath "$3")
export PYTHONPATH=$repo${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
speed="python3 $repo/tests/benchmarks/fit_speed.py --steps 0 --json $out/speed.jsonl"

table() { # three seeds of each method
  (cd "$hub" && OMP_NUM_THREADS=2 python3 "$repo/tests/benchmarks/tuning_table.py" run --model "$model" --output "$out/table" \
    --parallel "${PARALLEL:-6}" --eval-extra="--batch-size 16" --train-extra="${TRAIN_EXTRA:-}" --configs "${CONFIGS:-cft;rcft;rcft, E-step exact;label-smoothing;rcft as in the paper;base}")
}
harder() { # the table on a pool with a quarter of OpenBookQA and 5 % of medical questions, the rest MMLU
  rm -rf "$out/hub" && cp -r "$hub" "$out/hub" && chmod -R u+w "$out/hub"
  while read -r rows file; do
    head -n "$rows" "$hub/$file" > "$out/hub/$file"
  done <<< "1050 allenai/openbookqa/main/train.jsonl
100 allenai/openbookqa/main/validation.jsonl
100 allenai/openbookqa/main/test.jsonl
150 openlifescienceai/medmcqa/data/train.jsonl
100 openlifescienceai/medmcqa/data/validation.jsonl"
  hub=$out/hub out=$out/harder table
}
test_() { # these files alone: others import libraries that the machine need not have
  (cd "$repo" && python3 -m pytest -q -p no:cacheprovider -m accelerator $(grep -rl pytest.mark.accelerator tests --include='test_*.py'))
}
big() { # 8B, QLoRA, then a bfloat16 base; what is patched by Liger comes after what is not
  $speed --quantization nf4 --ways check,authors,ours,estep,score,trl --batch-sizes 16,32 --rows 640
  $speed --quantization nf4 --ways authors,ours+liger,estep+liger,score+liger,trl+liger --batch-sizes 64,32 --rows 960
  $speed --quantization nf4 --ways ours --methods rcft --batch-sizes 2 --rows 200
  $speed --methods cft --ways check,ours,score,ours+liger,score+liger --batch-sizes 32 --rows 640
}
defaults() { # no flags: an 8B's steps from the first one on; whole runs of MODEL from the command line, scoring of a random 8B
  local whole="python3 $repo/tests/benchmarks/whole_runs.py"
  $speed --quantization nf4 --ways authors --rows 0 --steps 8 --seconds 5
  $speed --quantization nf4 --ways ours+liger --methods cft --batch-sizes 16 --rows 0 --steps 468 --warm 0
  $speed --quantization nf4 --ways ours+liger --methods cft --batch-sizes 64 --rows 0 --steps 117 --warm 0
  (cd "$hub" && $whole fit --method cft --model "$model" --tasks mc_calib_indomain --apply-chat-template --epochs 3 --output "$out/fit" --overwrite
    $whole plain "$model"; $whole score "$model"; $whole shots "$model")
}
small() { # bound by kernel launches; with graphs a whole fit's steps, recordings and all
  for shape in 0.5b 135m; do
    $speed --shape $shape --ways plain,ours --batch-sizes 16 --rows 2500 --seconds 5 --recipe-extra cuda_graphs=false
    $speed --shape $shape --ways ours --batch-sizes 16 --rows 2500 --steps 468
  done
  $speed --shape 1b --quantization nf4 --ways authors,plain,ours,ours+liger --batch-sizes 16,64 --rows 640 --seconds 5
}
scoring() { # hf-prefix against the stock backend: an 8B with random weights, then the real 0.5B; MODEL's tokenizer has more tokens than the 8B
  (cd "$hub" && for options in "--shape 8b --quantization nf4 --model ${SMALL_TOKENIZER:-none}" "--model $model" "--model $model --dtype float32"; do
    python3 "$repo/tests/benchmarks/scoring.py" --dtype bfloat16 --device cuda --limit 200 $options
  done)
}
ideas() { # one at a time left out of the fit, or put into it; what comes first is slow, so ours comes three times
  local names="ours+casts ours+alllogits ours+onepiece ours+random ours+whole ours+unfused ours+checkpointing ours+dropout"
  $speed --quantization nf4 --batch-sizes 32 --rows 480 \
    --ways "ours,ours,$(tr ' ' '\n' <<< "$names" | "${1:-cat}" | paste -sd,),ours,score,score+noprefix,score"
}
again() { # in the opposite order
  ideas tac
}
packing() { # prompts side by side in one row against padded batches; 7,500 tokens take some 60 GiB
  for attention in sdpa varlen flex_attention; do
    python3 "$repo/tests/benchmarks/packing.py" --shape 8b --quantization nf4 --batch-sizes 16,64 --batches 8 --most-tokens 7500 \
      --attention $attention
  done
}
two() { # two GPUs: as many questions on each as on one; three times, since what a process does first is slow
  for processes in 1 2; do
    python3 -m torch.distributed.run --nproc_per_node $processes ${speed#python3} --quantization nf4 --ways ours+liger,estep+liger \
      --rows $((640 * processes)) --batch-sizes 32,32,32
  done
}
fsdp() { # a bfloat16 8B with random weights, split over two GPUs and on one; its tokenizer is SMALL_TOKENIZER's
  python3 - "$out/8b" "$SMALL_TOKENIZER" <<< "
import sys, torch, transformers
sys.path.insert(0, '$repo/tests/benchmarks')
from speed_model import build
build('8b', 'none', torch.device('cuda')).save_pretrained(sys.argv[1])
transformers.AutoTokenizer.from_pretrained(sys.argv[2]).save_pretrained(sys.argv[1])"
  fit="-m calibtune fit --method rcft --model $out/8b --tasks mc_calib_indomain --apply-chat-template --limit 320 --held-out 64
    --epochs 1 --overwrite"
  (cd "$hub" && python3 $fit --batch-size 16 --output "$out/one"
    python3 -m accelerate.commands.launch --num_processes 2 --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \
      --fsdp_state_dict_type FULL_STATE_DICT --fsdp_reshard_after_forward true $fit --batch-size 8 --output "$out/split")
  rm -rf "$out/8b"
}
shares() { # memory of two GPUs on a model that is read in shares, one of large embeddings, and one read whole, at the same time; transformers 5.23 or newer
  local sizes="--hidden 2048 --layers 16"
  for how in "$sizes" "--hidden 512 --layers 6 --vocabulary 65536" "$sizes --whole"; do
    python3 "$repo/tests/benchmarks/shares_memory.py" --processes 2 --device cuda $how &
  done
  wait
}
for part in ${4:-table test big defaults small scoring ideas again packing}; do
  [ "$part" = test ] && part=test_
  "$part" 2>&1 | tee "$out/$part.log"
done
