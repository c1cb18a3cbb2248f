#!/bin/sh
# Two machines of eight GPUs, by the address of the first and that of the machine itself:
#     HEAD=10.0.0.1 HERE=10.0.0.1 sh launch/torchrun_two_nodes.sh       # on the first
#     HEAD=10.0.0.1 HERE=10.0.0.2 sh launch/torchrun_two_nodes.sh       # on the second
# Both need the folder of the run and the data. When the second dies, the first waits an hour for it to run this again;
# when the first dies, the second ends, and both run this again. Training goes on from the last checkpoint.
set -eu
: "${HEAD:?address of the first machine}" "${HERE:?address of this machine}"
# Without addresses torchrun asks the names of the machines, which on many stand for 127.0.1.1.
if [ "$HERE" = "$HEAD" ]; then is_host=true; else is_host=false; fi
# The main process is where the address is sorted first. If that is the second, the first would go on looking for it at
# the port that died with the second; so torchrun is told to keep no store for the processes, but let them make theirs.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes=2 --nproc-per-node="${NPROC:-8}" --max-restarts=3 --local-addr="$HERE" \
    --rdzv-backend=c10d --rdzv-id="${RUN:-gpt2}" --rdzv-endpoint="$HEAD:29400" \
    --rdzv-conf="is_host=$is_host,join_timeout=3600" \
    -m gpt2 train "${RECIPE:-gpt2}" --init_from=auto --out_dir="${OUT:-out-gpt2}" --data_dir="${DATA:-data}"
