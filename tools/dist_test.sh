#!/usr/bin/env bash
# Test a checkpoint with several processes; NNODES and so on as in tools/dist_train.sh.
#
# Usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#
# With TOOL=extract_features.py in front it embeds a split in shards; options are of that tool.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

TOOL=${TOOL:-test.py} exec bash "$(dirname "${BASH_SOURCE[0]}")/dist_train.sh" "$config" "$gpus" "$checkpoint" "$@"
