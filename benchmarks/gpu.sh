#!/usr/bin/env bash
# The measurements on one GPU: tokens/s beside the peers, time to a loss beside nanoGPT, and the larger models.
#
#   benchmarks/gpu.sh NANOGPT LLMC DATASET OUT
#
# NANOGPT, LLMC: checkouts. DATASET: tokens of GPT-2 prepared as data/NAME with train.bin and val.bin, also to be found
# by nanoGPT as NANOGPT/data/NAME. OUT: a folder for the tables.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
mkdir -p "$4"
nanogpt=$(realpath "$1") llmc=$(realpath "$2") dataset=$(realpath "$3") out=$(realpath "$4")
here=$(dirname "$0")

# 124M, 0.5M tokens an update, the same micro-batch for all.
python "$here/training.py" --device=cuda --dtypes bfloat16 --nanogpt "$nanogpt" --llmc "$llmc" \
  --batch_size=32 --block_size=1024 --accumulation=16 --rounds=5 --json="$out/training.json" | tee "$out/training.md"

# Ours with the micro-batch that suits it.
gpt2 bench train gpt2 --dataset="$dataset" --batch_size=64 --total_batch_size=524288 --json > "$out/bench_124M.json"

# Five minutes each from the start of the process, evaluated and saved as often, on the same tokens.
five_minutes() { timeout --signal=INT 300 "$@" || true; }
(cd "$nanogpt" && five_minutes python train.py --dataset="$(basename "$dataset")" \
  --out_dir="$out/nanogpt" --batch_size=32 --gradient_accumulation_steps=4 --eval_interval=100 --eval_iters=20 \
  --warmup_iters=100 --max_iters=100000 --log_interval=10 > "$out/nanogpt.log")
for optimizer in adamw muon; do
  five_minutes gpt2 train gpt2 --dataset="$dataset" --out_dir="$out/$optimizer" --optimizer=$optimizer --bias=False \
    --batch_size=32 --total_batch_size=131072 --warmup_iters=100 --max_iters=100000 --lr_decay_iters=600000 \
    --eval_interval=100 --eval_iters=20 --log_interval=10 --checkpoint_interval=0 --sample_interval=0 --overwrite
done

# The larger ones.
for size in gpt2-medium:32 gpt2-large:16 gpt2-xl:8; do
  gpt2 bench train "${size%:*}" --dataset="$dataset" --batch_size="${size#*:}" --total_batch_size=524288 --steps=5 \
    --json > "$out/bench_${size%:*}.json"
done
