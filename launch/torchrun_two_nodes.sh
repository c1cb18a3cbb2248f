#!/bin/sh
# Two machines of eight GPUs with torchrun. HEAD is the address of the first machine, HERE that of this machine:
#     HEAD=10.0.0.1 HERE=10.0.0.1 sh launch/torchrun_two_nodes.sh       # on the first
#     HEAD=10.0.0.1 HERE=10.0.0.2 sh launch/torchrun_two_nodes.sh       # on the second
# Both machines need access to the folder of the run and to the data. If the second machine dies, the first waits an hour
# for it to run this file again. If the first machine dies, the second ends, and both must run this file again. Training
# continues from the last checkpoint.
set -eu
: "${HEAD:?address of the first machine}" "${HERE:?address of this machine}"
# Without an address, torchrun uses the machine's host name, which on many machines resolves to 127.0.1.1.
if [ "$HERE" = "$HEAD" ]; then is_host=true; else is_host=false; fi
# torchrun places the main process on the machine whose address sorts first. If that is the second machine and it dies,
# the first would keep looking for the main process at a port that no longer exists. With this variable, torchrun shares
# no store with the processes, and they create their own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Seconds that torchrun gives the processes to save after a signal, instead of 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600
exec torchrun --nnodes=2 --nproc-per-node="${NPROC:-8}" --max-restarts=3 --local-addr="$HERE" \
    --rdzv-backend=c10d --rdzv-id="${RUN:-gpt2}" --rdzv-endpoint="$HEAD:29400" \
    --rdzv-conf="is_host=$is_host,join_timeout=3600" \
    -m gpt2 train "${RECIPE:-gpt2}" --init_from=auto --out_dir="${OUT:-out-gpt2}" --data_dir="${DATA:-data}"
