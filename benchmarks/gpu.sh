#!/usr/bin/env bash
# Run the measurements on one GPU: the speed of gpt2 and other programs, the loss after five minutes compared with that
# of nanoGPT, and the speed of the larger models.
#
#   benchmarks/gpu.sh NANOGPT LLMC DATASET OUT
#
# NANOGPT and LLMC are checkouts of these projects. DATASET is a folder data/NAME with GPT-2 tokens in train.bin and
# val.bin; the same files must be in NANOGPT/data/NAME. OUT is a folder for the tables.
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
mkdir -p "$4"
nanogpt=$(realpath "$1") llmc=$(realpath "$2") dataset=$(realpath "$3") out=$(realpath "$4")
here=$(dirname "$0")

# The 124M model, 0.5M tokens per optimizer step, the same micro-batch for all programs.
python "$here/training.py" --device=cuda --dtypes bfloat16 --nanogpt "$nanogpt" --llmc "$llmc" \
  --batch_size=32 --block_size=1024 --accumulation=16 --rounds=5 --json="$out/training.json" | tee "$out/training.md"

# gpt2 with a larger micro-batch.
gpt2 bench train gpt2 --dataset="$dataset" --batch_size=64 --total_batch_size=524288 --json > "$out/bench_124M.json"

# Five minutes each on the same tokens, with the same evaluations. The learning rate of each program decays over the
# steps that it can make in four minutes at the speed just measured, rounded to hundreds. The last minute is for
# starting, compiling and evaluating.
steps() {
  python -c 'import json, sys; results = json.load(open(sys.argv[1]))["results"]
print(100 * round(2.4 * results[sys.argv[2]]["tokens_per_second"] / 131072))' "$out/training.json" "$1"
}
gpt2_steps=$(steps "gpt2, bfloat16") nanogpt_steps=$(steps nanoGPT)
both="--batch_size=32 --bias=False --warmup_iters=100 --min_lr=6e-5 --eval_interval=100 --eval_iters=20 --log_interval=10"
gpt2_run="gpt2 $both --dataset=$dataset --total_batch_size=131072 --max_iters=$gpt2_steps"
python "$here/equal_time.py" --minutes=5 --nanogpt "$nanogpt" \
  --nanogpt_flags="$both --dataset=$(basename "$dataset") --gradient_accumulation_steps=4 --max_iters=$nanogpt_steps \
    --lr_decay_iters=$nanogpt_steps" \
  --runs "$gpt2_run" "$gpt2_run --optimizer=muon" "$gpt2_run --optimizer=muon --learning_rate=3e-3 --min_lr=0" \
  --json="$out/equal_time.json" | tee "$out/equal_time.md"

# The larger models.
for size in gpt2-medium:32 gpt2-large:16 gpt2-xl:8; do
  gpt2 bench train "${size%:*}" --dataset="$dataset" --batch_size="${size#*:}" --total_batch_size=524288 --steps=5 \
    --json > "$out/bench_${size%:*}.json"
done
