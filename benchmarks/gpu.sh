#!/usr/bin/env bash
# Measure gpt2 on one GPU, in four parts of under ten minutes each. A machine without a network is enough.
#
#   benchmarks/gpu.sh smoke                              does it work, and are the numbers right?
#   benchmarks/gpu.sh variants                           what each choice gains or costs on this GPU
#   benchmarks/gpu.sh compare NANOGPT LLMC               speed compared with other programs; decoding; larger models
#   benchmarks/gpu.sh race NANOGPT DATASET [HELLASWAG]   validation loss over time compared with nanoGPT
#
# NANOGPT and LLMC are checkouts of these projects; nanoGPT is copied before anything is written into it. DATASET is a
# prepared folder with GPT-2 tokens in train.bin and val.bin, or a text that `gpt2 prepare` reads. HELLASWAG is the file
# hellaswag_val.jsonl. A part that fails or takes too long says so, and the rest of it goes on.
#
# What to carry to the machine, besides the arguments: this repository's src, tests and benchmarks. What must be
# there: PyTorch with CUDA and Triton, a C compiler, the packages of pyproject.toml, and for `smoke` pytest and hypothesis.
# Missing packages travel as wheels: `pip download` them, and on the machine
#   python3 -m pip install --no-index --no-deps --target SITE WHEELS/*.whl; export PYTHONPATH=SITE
# `race` and `compare` need tiktoken's cache of GPT-2's tokenizer: export TIKTOKEN_CACHE_DIR.
#
# Variables: PYTHON (python3), DEVICE (cuda), OUT (a folder for tables, gpu_results), MINUTES (2, of each run of a race).
# DEVICE=cpu SMALL=1 rehearses a part on a CPU.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
usage() { sed -n '2,10p' "$0" | cut -c3- >&2; exit 2; }
part=${1:-}; [ $# -gt 0 ] && shift
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} SMALL=${SMALL:-} OUT=${OUT:-gpu_results} MINUTES=${MINUTES:-2}
mkdir -p "$OUT"; OUT=$(realpath "$OUT")
work=$OUT/work; mkdir -p "$work"
export TORCHINDUCTOR_CACHE_DIR=$work/inductor  # compiled code of one part is used by the next

LIMIT=560  # seconds of a part
left() { echo $((LIMIT - SECONDS)); }
say() { printf '\n=== %3d s · %s\n' "$SECONDS" "$*"; }
# within SECONDS COMMAND: run a command for at most so long, and not past the end of the part.
within() {
  local limit=$(($1 < $(left) ? $1 : $(left))); shift
  if [ "$limit" -lt 20 ]; then echo "no time left for: $*" | cut -c1-200; return 1; fi
  timeout -k 5 "$limit" "$@" || { echo "FAILED ($?): $*" | cut -c1-300; return 1; }
}
gpt2() { local limit=$1; shift; within "$limit" "$PYTHON" -m gpt2 "$@"; }
# bench MODEL BATCH_SIZE ACCUMULATION: the speed of a size on random tokens, as JSON.
bench() {
  gpt2 200 bench train "$1" --device="$DEVICE" --vocab_size=50257 --dataset= --batch_size="$2" \
    --hellaswag_interval=0 --total_batch_size=$((1024 * $2 * $3)) --steps=8 --json 2>>"$OUT/errors.txt" | tee "$OUT/bench_$1_$2.json"
}
tiny="--n_layer=2 --n_head=2 --n_embd=64 --block_size=64 --batch_size=8 --eval_iters=2 --compile=False"

smoke() {
  say machine
  nvidia-smi -L 2>/dev/null
  "$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "PyTorch", torch.__version__)'
  say "a run with the default device, as every user starts it"
  gpt2 60 prepare "$root/src/gpt2/model.py" --tokenizer=char --out="$work/chars" --overwrite 2>&1 | tail -1
  [ -n "$SMALL" ] || tiny=${tiny/--compile=False/}
  gpt2 120 train $tiny --dataset="$work/chars" --max_iters=20 --out_dir="$work/default" --overwrite 2>&1 | grep -v "^step.*lr"
  gpt2 60 train --init_from=resume --out_dir="$work/default" --max_iters=30 2>&1 | grep -v "^step.*lr"
  gpt2 60 sample "$work/default" --max_new_tokens=40 --device="$DEVICE" 2>&1 | tail -2
  say "the tests of a GPU: numbers, dtypes, resume, waits, memory, NCCL"
  parallel=""
  [ -z "$SMALL" ] && "$PYTHON" -c 'import xdist' 2>/dev/null && parallel="-n 4"
  (cd "$root" && GPT2_TEST_GPU=${DEVICE%:*} within 420 "$PYTHON" -m pytest tests/gpu -rs $parallel \
    ${SMALL:+-k "numbers and not compiled"}) 2>&1 | tail -30 | tee "$OUT/tests.txt"
  [ -n "$SMALL" ] && return
  say "the 124M model: tokens/s, phases and memory by micro-batch"
  for size in 32 64 16; do bench gpt2 $size 2; done
}

variants() {
  within "$(left)" "$PYTHON" "$root/benchmarks/variants.py" --device="$DEVICE" --seconds="$(left)" ${SMALL:+--small} \
    --kernels="$OUT/kernels.txt" --json="$OUT/variants.json" 2>>"$OUT/errors.txt" | tee "$OUT/variants.md"
  head -25 "$OUT/kernels.txt" 2>/dev/null
}

compare() {
  [ $# -eq 2 ] || usage
  say "the same optimizer steps by gpt2, nanoGPT and llm.c's train_gpt2.py"
  shape="--batch_size=32 --block_size=1024 --accumulation=4 --rounds=5"
  [ -z "$SMALL" ] || shape="--model=d6 --batch_size=1 --block_size=64 --accumulation=1 --rounds=1 --no_compile"
  within 330 "$PYTHON" "$root/benchmarks/training.py" --device="$DEVICE" --dtypes bfloat16 --nanogpt "$1" --llmc "$2" \
    $shape --json="$OUT/training.json" 2>>"$OUT/errors.txt" | tee "$OUT/training.md"
  say "decoding"
  model=${SMALL:+random:d6}
  for dtype in float32 bfloat16; do
    gpt2 60 bench sample "${model:-random:gpt2}" --device="$DEVICE" --dtype=$dtype --rounds=3 2>>"$OUT/errors.txt"
  done
  [ -n "$SMALL" ] && return
  say "larger models"
  bench gpt2-medium 24 1; bench gpt2-large 12 1; bench gpt2-xl 8 1
}

race() {
  [ $# -ge 2 ] || usage
  nanogpt=$work/nanoGPT dataset=$2
  rm -rf "$nanogpt"; cp -r "$1" "$nanogpt"
  if [ ! -f "$dataset/train.bin" ]; then
    say "preparing $dataset"
    dataset=$work/dataset
    [ -f "$dataset/train.bin" ] || gpt2 200 prepare "$2" --tokenizer=gpt2 --out="$dataset" 2>&1 | tail -1
  fi
  dataset=$(realpath "$dataset"); mkdir -p "$nanogpt/data/race"
  ln -sf "$dataset/train.bin" "$dataset/val.bin" "$nanogpt/data/race/"
  say "$MINUTES minutes for each program"
  steps=${STEPS:-240}
  both="--batch_size=32 --warmup_iters=30 --eval_interval=40 --eval_iters=10 --log_interval=10 --max_iters=$steps"
  theirs="--gradient_accumulation_steps=4 --min_lr=6e-5" ours="--total_batch_size=131072"
  if [ -n "$SMALL" ]; then
    small="--n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --compile=False --eval_interval=5"
    both="$small --warmup_iters=1 --eval_iters=2 --max_iters=15" ours="--total_batch_size=128"
    theirs="--gradient_accumulation_steps=1 --device=cpu"
  fi
  alone="--hellaswag_interval=0 --sample_interval=0"  # the recipe downloads HellaSwag otherwise
  run="gpt2 $both $ours $alone --bias=False --device=$DEVICE --dataset=$dataset"
  within 500 "$PYTHON" "$root/benchmarks/equal_time.py" --minutes="$MINUTES" --nanogpt "$nanogpt" \
    --nanogpt_flags="$both $theirs --bias=False --dataset=race --lr_decay_iters=$steps" \
    --runs "$run --min_lr=6e-5" "$run --optimizer=muon --learning_rate=3e-3 --min_lr=0" \
    --json="$OUT/equal_time.json" | tee "$OUT/equal_time.md"
  [ $# -ge 3 ] || return
  say "HellaSwag with an untrained model: tasks per second"
  flags="$alone --max_iters=1 --warmup_iters=0 --batch_size=4 --total_batch_size=4096 --eval_iters=1 --compile=False"
  gpt2 60 train gpt2 ${SMALL:+--n_layer=2 --n_head=2 --n_embd=32} $flags --dataset="$dataset" --device="$DEVICE" \
    --out_dir="$work/untrained" --overwrite >/dev/null 2>>"$OUT/errors.txt"
  limit=2000; [ -z "$SMALL" ] || limit=20
  for dtype in bfloat16 float32; do
    gpt2 60 eval hellaswag "$work/untrained" --data="$3" --limit=$limit --device="$DEVICE" --dtype=$dtype 2>&1 | tail -1
  done
}

case $part in
smoke | variants | compare | race) "$part" "$@" ;;
*) usage ;;
esac
say "done; tables and errors are in $OUT"
