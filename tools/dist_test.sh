#!/usr/bin/env bash
# Test a checkpoint with several processes; NNODES and so on as in tools/dist_train.sh.
#
# Usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n 's/^# \{0,1\}//p; /^set/q' "$0" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

TOOL=test.py exec bash "$(dirname "${BASH_SOURCE[0]}")/dist_train.sh" "$config" "$gpus" "$checkpoint" "$@"
