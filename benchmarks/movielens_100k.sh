#!/usr/bin/env bash
# MovieLens-100K, random 8:1:1, label > 3: pretraining, the three strategies and their baselines, for each seed given.
#   benchmarks/movielens_100k.sh ml-100k.zip runs/ml100k 0 1 2
# Started again it goes on where it stopped. benchmarks/results.py prints the table.
set -euo pipefail
raw=$1 out=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
alt=(.venv/bin/alt-jax)
config=configs/movielens_100k.py
data=(--data.dir "$out/data" --data.raw "$raw")
[ -f "$out/data/schema.json" ] || "${alt[@]}" prepare $config "${data[@]}"
for seed in "$@"; do
  run=$out/seed_$seed
  for strategy in ctr plm joint; do
    "${alt[@]}" finetune $config "${data[@]}" --seed "$seed" --strategy $strategy --init-from none \
      --run-dir "$run/${strategy}_baseline"
  done
  "${alt[@]}" pretrain $config "${data[@]}" --seed "$seed" --run-dir "$run/pretrain" \
    --mask.unit field --mask.pairing independent --mask.helper whole
  for strategy in ctr plm joint; do
    "${alt[@]}" finetune $config "${data[@]}" --seed "$seed" --strategy $strategy --init-from "$run/pretrain" \
      --run-dir "$run/${strategy}_pretrained"
  done
done
