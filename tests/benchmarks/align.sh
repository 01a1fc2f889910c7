#!/usr/bin/env bash
# Run a grid of DPO runs on a lent GPU and measure each checkpoint; align.py does the work.
#
# A folder BASE travels: wheels/, paper.tar.xz, argilla.tar.xz, real_model.py, qwen.tar.xz (configuration and tokenizer of
# the model), tiny/ (the same of another), repo.tar.gz (this repository) and this file. The model's GGUF travels in
# pieces, one a call, to WORK/pieces. There:
#
#   bash BASE/align.sh install             unpack and install into WORK (first call)
#   bash align.sh smoke                    in the background: train and measure a tiny random model; WORK/smoke.log
#   bash align.sh start                    with all pieces there, in the background: the grid; WORK/all.log
#   bash align.sh wait SECONDS             wait until all is done, at most SECONDS; results so far go to $OUT
#   bash align.sh bring RANK [RUN/EPOCH]   the RANK-th most overconfident adapter, or a named one, to $OUT
#
# GRID: file of lines "name flags of align.py train", instead of the grid below.
# LANES: runs at the same time; each takes up to 25 GiB of GPU memory.
# BUDGET: seconds after `start` when no further measurement begins; the last run begins 200 s earlier.
set -uo pipefail
work=${WORK:-/tmp/align}
here=$(cd "$(dirname "$0")" && pwd)
site=${SITE-$work/site}
export PYTHONPATH=$site:$work/repo OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
align="python3 $work/repo/tests/benchmarks/align.py"
# What the kernels cost hardly depends on a batch's size, so larger batches are nearly free; 17% of the pairs are cut.
sizes="--micro-batch-size 4 --max-length 768"
mirrors="--data $work/hub --questions $work/paper"

# Most wanted first. One run gives the checkpoints of all its kept epochs. letters: 900 more pairs, of a right and a
# wrong letter, so that preferences act on letters too.
grid() {
  cat <<'LINES'
letters-b0.1 --beta 0.1 --learning-rate 5e-5 --letters 900 --keep-epochs 1,3
letters-b0.01 --beta 0.01 --learning-rate 5e-5 --letters 900 --keep-epochs 1,3
text-b0.01 --beta 0.01 --learning-rate 5e-5 --keep-epochs 1,3
text-b0.1 --beta 0.1 --learning-rate 5e-5 --keep-epochs 3
text-b0.01-lr2e-4 --beta 0.01 --learning-rate 2e-4 --keep-epochs 1,3
letters-b0.3 --beta 0.3 --learning-rate 5e-5 --letters 900 --keep-epochs 3
text-b0.3 --beta 0.3 --learning-rate 5e-5 --keep-epochs 3
text-tulu-b5 --loss sigmoid_norm --beta 5 --learning-rate 5e-5 --keep-epochs 3
LINES
}
# A run of all weights takes 35 GiB, so it comes alone, after the others.
full="full-b0.01 --beta 0.01 --learning-rate 2e-6 --lora-rank 0 --keep-epochs 1 --checkpointing"
say() { echo "$(date +%T) $*"; }
left() { echo $((budget - ($(date +%s) - $(cat "$work/started")))); }
install() {
  mkdir -p "$work"/{paper,hub,repo,runs,results,logs,pieces} || exit
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$here"/wheels/*.whl || exit
  tar xf "$here/repo.tar.gz" -C "$work/repo" && tar xf "$here/paper.tar.xz" -C "$work/paper" \
    && tar xf "$here/argilla.tar.xz" -C "$work/hub" && cp -r "$here"/{real_model.py,align.sh,qwen.tar.xz,tiny} "$work/" || exit
  nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
  python3 -m pip list 2> "$work/logs/pip" | grep -iE '^(torch|transformers|peft|accelerate|pyarrow|datasets|trl|lm_eval|pandas|scipy|numpy) '
}
smoke_() { # the same code on a tiny random model: what is missing on the device shows in the first minute
  python3 -c "
import sys, transformers
transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(sys.argv[1])).save_pretrained(sys.argv[1])
" "$work/tiny" || return
  HF_DATASETS_CACHE=$work/cache/smoke $align train --model "$work/tiny" $mirrors --pairs 12 --letters 12 --max-length 128 \
    --lora-rank 4 --batch-size 8 --keep-epochs 1,2 --output "$work/smoke/run" || return
  HF_DATASETS_CACHE=$work/cache/smoke $align measure --model "$work/tiny" --checkpoint "$work/smoke/run/epoch-2" $mirrors \
    --limit 8 --output "$work/smoke/results/tiny.json" && say "smoke: it works"
}
model() { # join the pieces, check them, de-quantize as real_model.py does, on all cores
  cat "$work"/pieces/piece-* > "$work/model.gguf"
  mkdir -p "$work/model"
  (cd "$work" && tar xf qwen.tar.xz -C model && OMP_NUM_THREADS=1 python3 - <<'PYTHON'
import concurrent.futures, hashlib, sys

import gguf, torch
from gguf.quants import dequantize
from safetensors.torch import save_file

sys.path.insert(0, ".")
import real_model

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def name(tensor):
    *layer, part, kind = tensor.name.split(".")
    return ".".join((["model.layers", layer[1]] if layer else []) + [NAMES[part], kind])


def convert(tensor, rows):
    whole[name(tensor)][rows] = torch.from_numpy(dequantize(tensor.data[rows], tensor.tensor_type)).bfloat16()


with open("model.gguf", "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
if found != real_model.MODELS["qwen1.5b"][2]:
    sys.exit(f"the joined GGUF's hash is {found}: a piece is missing or cut")
tensors = gguf.GGUFReader("model.gguf").tensors
whole = {name(t): torch.empty([int(n) for n in reversed(t.shape)], dtype=torch.bfloat16) for t in tensors}
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    jobs = [pool.submit(convert, t, slice(i, i + 4096)) for t in tensors for i in range(0, len(t.data), 4096)]
    [job.result() for job in jobs]
save_file(whole, "model/model.safetensors", metadata={"format": "pt"})
PYTHON
  )
}
measure() { # NAME [CHECKPOINT]
  [ "$(left)" -gt 0 ] || { say "no time to measure $1"; return; }
  say "measure $1"
  HF_DATASETS_CACHE=$work/cache/$1 $align measure --model "$work/model" ${2:+--checkpoint "$2"} $mirrors --batch-size 16 ${MEASURE_EXTRA:-} \
    --output "$work/results/$1.json" > "$work/logs/measure-$1.log" 2>&1 \
    || say "measure $1 failed: $(tail -c 300 "$work/logs/measure-$1.log")"
}
one() { # a line of the grid: train, then measure each checkpoint; or "base"
  local name=${1%% *} flags=${1#* }
  [ "$name" != base ] || { measure base; return; }
  [ "$(left)" -gt 200 ] || { say "no time for $name"; return; }
  say "train $name"
  HF_DATASETS_CACHE=$work/cache/$name $align train --model "$work/model" $mirrors $sizes $flags ${TRAIN_EXTRA:-} \
    --output "$work/runs/$name" > "$work/logs/train-$name.log" 2>&1 \
    || say "train $name failed: $(tail -c 300 "$work/logs/train-$name.log")"
  cp "$work/runs/$name/align.json" "$work/logs/$name.json"
  # The last epoch first: what time cuts off is the way there.
  for checkpoint in $(ls -rd "$work/runs/$name"/{epoch-*,last} 2> /dev/null); do
    measure "$name-$(basename "$checkpoint")" "$checkpoint"
  done
  say "done $name"
}
all() {
  date +%s > "$work/started"
  rm -f "$work/finished"
  if [ -e "$work/model/model.safetensors" ] || model; then
    say "the model is there"
    { if [ -n "${GRID:-}" ]; then cat "$GRID"; else grid; fi && echo base; } | tr '\n' '\0' \
      | xargs -0 -P "$lanes" -I{} bash "$work/align.sh" one {}
    [ -n "${GRID:-}" ] || one "$full"
  fi
  say "all done"
  touch "$work/finished"
}
collect() {
  tar czf "$OUT/results.tar.gz" -C "$work" results logs all.log
  # The log alone too, for a look without unpacking.
  cp "$work/all.log" "$OUT/"
}
wait_() { # SECONDS
  local end=$(($(date +%s) + $1))
  until [ -e "$work/finished" ] || [ "$(date +%s)" -ge "$end" ]; do
    sleep 5
    [ $((SECONDS % 60)) -ge 5 ] || collect
  done
  collect
  nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader
  $align table "$work/results"
  cat "$work/all.log"
}
memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
lanes=${LANES:-$((${memory:-0} > 100000 ? 5 : 3))}
budget=${BUDGET:-1300}
export LANES=$lanes BUDGET=$budget WORK=$work SITE=$site
case $1 in
  install | all) "$1" ;;
  one) one "$2" ;;
  smoke) setsid bash "$work/align.sh" smoke_ > "$work/smoke.log" 2>&1 < /dev/null & ;;
  smoke_) smoke_ ;;
  start) setsid bash "$work/align.sh" all > "$work/all.log" 2>&1 < /dev/null & ;;
  wait) wait_ "$2" ;;
  bring)
    $align pack --results "$work/results" --runs "$work/runs" --rank "$2" ${3:+--checkpoint "$3"} --output "$OUT" && collect ;;
  *) echo "align.sh: no command $1" >&2 && exit 2 ;;
esac
