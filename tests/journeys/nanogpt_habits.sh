#!/usr/bin/env bash
# The habits of nanoGPT's users: its config file and options, its way to sample, and its checkpoints. About a minute on
# two cores.
#
#   tests/journeys/nanogpt_habits.sh [FILE or FOLDER]
. "$(dirname "$0")/steps.sh"

mkdir config
cat >config/train_shakespeare_char.py <<'END'
# train a miniature character-level shakespeare model
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent because we'll overfit
eval_iters = 200
log_interval = 10 # don't print too too often
always_save_checkpoint = False
wandb_log = False # override via command line if you like
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256 # context of up to 256 previous characters
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3 # with baby networks can afford to go a bit higher
max_iters = 5000
lr_decay_iters = 5000 # make equal to max_iters usually
min_lr = 1e-4 # learning_rate / 10 usually
beta2 = 0.99 # make a bit bigger because number of tokens per iter is small
warmup_iters = 100 # not super necessary potentially
END

step prepare gpt2 prepare "$text" --tokenizer=char --format=nanogpt --out=data/shakespeare_char
answered "their prepare.py" "gpt2 prepare shakespeare_char" gpt2 python data/shakespeare_char/prepare.py
answered "their train.py" "gpt2 train config/train_shakespeare_char.py" \
  gpt2 python train.py config/train_shakespeare_char.py
step train gpt2 train config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 \
  --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=500 --lr_decay_iters=500 \
  --dropout=0.0
answered "their sample.py" "gpt2 sample out-shakespeare-char" gpt2 python sample.py --out_dir=out-shakespeare-char
step sample gpt2 sample --out_dir=out-shakespeare-char --num_samples=2 --max_new_tokens=200 --device=cpu
echo "import " >prompt.txt
step "sample with a prompt from a file" gpt2 sample --out_dir=out-shakespeare-char --start=FILE:prompt.txt \
  --num_samples=1 --max_new_tokens=100
step "export as nanoGPT's checkpoint" gpt2 export nanogpt out-shakespeare-char their-run
step "sample from ckpt.pt" gpt2 sample --init_from=resume --out_dir=their-run --tokenizer=data/shakespeare_char \
  --max_new_tokens=100
answered "resume from ckpt.pt" "gpt2 import their-run" gpt2 train --init_from=resume --out_dir=their-run
step import gpt2 import their-run out-imported
step continue gpt2 train --init_from=resume --out_dir=out-imported --dataset=shakespeare_char --max_iters=550 \
  --eval_iters=20 --device=cpu --compile=False
step bench gpt2 bench --profile=False --real_data=False --batch_size=4 --block_size=64 --n_layer=2 --n_head=4 \
  --n_embd=128 --compile=False
finish
