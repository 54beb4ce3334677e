#!/usr/bin/env bash
# Train with several processes, one a GPU (without GPUs, one a process on the CPU).
#
# Usage: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# Several machines: the same command on each, with
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500   (NODE_RANK 1 on the second)
# On one machine PORT is a free one unless given. PYTHON names the interpreter.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n 's/^# \{0,1\}//p; /^set/q' "$0" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
nodes=${NNODES:-1}
if [ "$nodes" = 1 ]; then
    free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
    port=${PORT:-$("$python" -c "$free_port")}
else
    port=${PORT:-29500}
fi

# Without a value every process would take all cores, or, by torchrun, a single one.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    threads=$(($(getconf _NPROCESSORS_ONLN) / gpus))
    export OMP_NUM_THREADS=$((threads > 1 ? threads : 1))
fi
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

# TOOL is set by dist_test.sh, which differs in nothing else.
exec "$python" -m torch.distributed.run \
    --nnodes="$nodes" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="$port" \
    --nproc-per-node="$gpus" \
    "$here/${TOOL:-train.py}" "$config" "$@" --launcher pytorch
