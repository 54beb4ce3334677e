#!/usr/bin/env bash
# Train under Slurm.
#
# Usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# By default GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5. SRUN_ARGS holds further options of srun, split
# at spaces; PYTHON names the interpreter. PORT is drawn unless given, so that jobs share nodes.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
shift 3

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
cpus_per_task=${CPUS_PER_TASK:-5}
if [ "$gpus" -lt "$gpus_per_node" ]; then
    gpus_per_node=$gpus
fi
read -r -a srun_args <<<"${SRUN_ARGS:-}"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_task}
# mmengine's default is 29500 for every job.
export MASTER_PORT=${PORT:-$((20000 + RANDOM % 10000))}
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

# TOOL is set by slurm_test.sh, which differs in nothing else.
exec srun --partition="$partition" \
    --job-name="$job_name" \
    --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="$cpus_per_task" \
    --kill-on-bad-exit=1 \
    "${srun_args[@]+"${srun_args[@]}"}" \
    "${PYTHON:-python}" -u "$here/${TOOL:-train.py}" "$config" "$@" --launcher slurm
