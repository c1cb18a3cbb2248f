#!/usr/bin/env bash
# Own text on a laptop: prepare it, train a small model, and have a sample and a curve within 90 seconds; then stop the
# training, look at it, and continue it. About two minutes on two cores.
#
#   tests/journeys/own_text.sh [FILE or FOLDER]
. "$(dirname "$0")/steps.sh"

has_sample_and_curve() {  # a sample of a trained model, and two evaluations
  [ "$(ls out-mine/samples 2>/dev/null | wc -l)" -ge 2 ] && [ "$(grep -c '"event": "eval"' out-mine/log.jsonl)" -ge 2 ]
}

train_for_90_seconds() {  # starts the training, and returns as soon as there is a sample and a curve
  gpt2 train own_text --dataset=mine --out_dir=out-mine &
  training=$!
  for _ in $(seq 90); do
    sleep 1
    if has_sample_and_curve; then return 0; fi
    kill -0 $training || return 1
  done
  echo "no sample and no curve after 90 seconds"
  kill $training
  return 1
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
step "train until there is a sample and a curve" train_for_90_seconds
step plot gpt2 plot out-mine -o curves.png
step stop stop
step sample gpt2 sample out-mine --max_new_tokens=100
step report gpt2 report out-mine
step resume continue_it
step show gpt2 show out-mine
finish
