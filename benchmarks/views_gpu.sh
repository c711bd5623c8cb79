#!/usr/bin/env bash
# Does the text add? The study `views` on MovieLens-1M, with one GPU, in ten minutes at a time:
#
#   bash benchmarks/views_gpu.sh ml-1m.zip MINILM FOLDER
#
# MINILM is the Hugging Face folder of all-MiniLM-L6-v2 (safetensors). FOLDER takes datasets, runs and tables, and what
# is finished there is not repeated: after nine minutes the script stops what is running, which saves, and started again
# it goes on there. Runs of a study share the card, four at a time.
set -euo pipefail
if (($# != 3)); then
  sed -n '2,8p' "$0" >&2
  exit 2
fi
raw=$1 minilm=$2 folder=$3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ends=$((SECONDS + 540))
export XLA_PYTHON_CLIENT_PREALLOCATE=false

study() { # a name, then the options that make the tower
  local name=$1 data left code
  shift
  data=(configs/movielens_1m.py:table "$@" --data.protocol time --data.dir "$folder/data_$name"
    --text.dtype bfloat16 --text.pooling mean --tracking)
  [[ -f $folder/data_$name/schema.json ]] || alt-jax prepare "${data[@]}" --data.raw "$raw"
  left=$((ends - SECONDS))
  timeout --signal=TERM "$((left > 1 ? left : 1))" alt-jax ablate "${data[@]}" --study views --seeds 1 --jobs 4 \
    --run-dir "$folder/views_$name" --pretrain.batch-size 1024 --pretrain.epochs 3 --pretrain.text-learning-rate 3e-4 \
    --finetune.plm.batch-size 512 --finetune.plm.epochs 3 --finetune.plm.patience 1 \
    --finetune.joint.batch-size 512 --finetune.joint.epochs 3 --finetune.joint.patience 1 || {
    code=$?
    if ((code == 124 || code == 75)); then
      echo "views_gpu: out of time; what was running has saved. Start it again to go on." >&2
      exit 75
    fi
    exit "$code"
  }
}

study minilm --text.model "$minilm"
study scratch --text.hidden 312 --text.layers 4 --text.heads 12 --text.intermediate 1200
