#!/usr/bin/env bash
# Test a checkpoint under Slurm; GPUS and so on as in tools/slurm_train.sh.
#
# Usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
set -euo pipefail

if [ $# -lt 4 ]; then
    sed -n 's/^# \{0,1\}//p; /^set/q' "$0" >&2
    exit 2
fi

TOOL=test.py exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm_train.sh" "$@"
