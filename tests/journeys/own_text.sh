#!/usr/bin/env bash
# Own text on a laptop: prepare it, train a small model, and have a sample and a curve within 90 seconds; then stop the
# training, look at it, and continue it. About a minute on two cores.
#
#   tests/journeys/own_text.sh [FILE or FOLDER]
. "$(dirname "$0")/steps.sh"

has_sample_and_curve() {  # what the model writes at its start, and the losses of some steps
  [ -n "$(ls out-mine/samples 2>/dev/null)" ] && [ "$(grep -c '"event": "train"' out-mine/log.jsonl)" -ge 10 ]
}

wait_90_seconds() {  # for a sample and a curve, while the training goes on
  for _ in $(seq 90); do
    sleep 1
    if has_sample_and_curve; then return 0; fi
    kill -0 $training || break
  done
  tail -n 5 "$work/training.log"
  return 1
}

start() {
  gpt2 train own_text --dataset=mine --out_dir=out-mine >"$work/training.log" 2>&1 &
  training=$!
  trap 'kill $training 2>/dev/null' EXIT
}

stop() {  # SIGTERM saves, and gives the exit status 75
  kill $training
  wait $training
  [ $? -eq 75 ]
}

continue_it() {
  local last
  last=$(basename "$(ls -d out-mine/checkpoints/step_* | tail -n 1)")
  gpt2 train --init_from=resume --out_dir=out-mine --max_iters=$((10#${last#step_} + 20))
}

step prepare gpt2 prepare "$text" --tokenizer=bpe --vocab_size=2048 --out=data/mine
step inspect gpt2 inspect mine
step "start training" start
step "a sample and a curve" wait_90_seconds
step plot gpt2 plot out-mine -o curves.png
step stop stop
step sample gpt2 sample out-mine --max_new_tokens=100
step report gpt2 report out-mine
step resume continue_it
step show gpt2 show out-mine
finish
