#!/usr/bin/env bash
# Train with several processes, one a GPU (without GPUs, one a process on the CPU).
#
# Usage: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# Several machines: the same command on each, with
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500   (NODE_RANK 1 on the second)
# On one machine PORT is a free one unless given. PYTHON names the interpreter.
#
# Where one process fails, torchrun ends the others, and what failed first stands last on the screen.
# One that hangs is noticed after env_cfg.dist_cfg.timeout seconds (--cfg-options), and killed 30 later.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "GPUS must be a number of processes, at least 1, got '$gpus'" >&2
    exit 2
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
nodes=${NNODES:-1}
if [ "$nodes" = 1 ]; then
    free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
    port=${PORT:-$("$python" -c "$free_port")}
else
    # Two machines of one rank, or each its own master, would wait for each other for ever.
    : "${NODE_RANK:?must be given when NNODES is $nodes: 0 on the first machine, 1 on the second}"
    : "${MASTER_ADDR:?must be given when NNODES is $nodes: the address of the machine of NODE_RANK 0}"
    port=${PORT:-29500}
fi

# Without a value every process would take all cores, or, by torchrun, a single one.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    threads=$(($(getconf _NPROCESSORS_ONLN) / gpus))
    export OMP_NUM_THREADS=$((threads > 1 ? threads : 1))
fi
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

# dist_test.sh sets TOOL and differs in nothing else.
exec "$python" -m torch.distributed.run \
    --nnodes="$nodes" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="$port" \
    --nproc-per-node="$gpus" \
    "$here/${TOOL:-train.py}" "$config" "$@" --launcher pytorch
