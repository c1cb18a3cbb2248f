#!/bin/sh
# Two machines of eight GPUs. Run on both, with the address of the first:
#     HEAD=10.0.0.1 sh launch/torchrun_two_nodes.sh
# A machine that dies is waited for; when it is back and runs this again, training goes on from the last checkpoint.
set -eu
exec torchrun --nnodes=2 --nproc-per-node=8 --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="${RUN:-gpt2}" --rdzv-endpoint="${HEAD:?address of the first machine}:29400" \
    -m gpt2 train "${RECIPE:-gpt2}" --init_from=auto --out_dir="${OUT:-out-gpt2}" --data_dir="${DATA:-data}"
