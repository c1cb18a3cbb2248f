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

# Five minutes each on the same tokens, evaluated as often. Each one's learning rate falls over the updates that it can
# make in four of them, by the rates just measured, in hundreds; the rest is for starting, compiling and evaluating.
updates() {
  python -c 'import json, sys; results = json.load(open(sys.argv[1]))["results"]
print(100 * round(2.4 * results[sys.argv[2]]["tokens_per_second"] / 131072))' "$out/training.json" "$1"
}
ours=$(updates "gpt2, bfloat16") theirs=$(updates nanoGPT)
both="--batch_size=32 --bias=False --warmup_iters=100 --min_lr=6e-5 --eval_interval=100 --eval_iters=20 --log_interval=10"
our_run="gpt2 $both --dataset=$dataset --total_batch_size=131072 --max_iters=$ours"
python "$here/equal_time.py" --minutes=5 --nanogpt "$nanogpt" \
  --nanogpt_flags="$both --dataset=$(basename "$dataset") --gradient_accumulation_steps=4 --max_iters=$theirs \
    --lr_decay_iters=$theirs" \
  --runs "$our_run" "$our_run --optimizer=muon" "$our_run --optimizer=muon --learning_rate=3e-3 --min_lr=0" \
  --json="$out/equal_time.json" | tee "$out/equal_time.md"

# The larger ones.
for size in gpt2-medium:32 gpt2-large:16 gpt2-xl:8; do
  gpt2 bench train "${size%:*}" --dataset="$dataset" --batch_size="${size#*:}" --total_batch_size=524288 --steps=5 \
    --json > "$out/bench_${size%:*}.json"
done
