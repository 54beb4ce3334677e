#!/usr/bin/env bash
# Test a checkpoint under Slurm; GPUS and so on as in tools/slurm_train.sh.
#
# Usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
#
# With TOOL=extract_features.py in front it embeds a split in shards; options are of that tool.
set -euo pipefail

if [ $# -lt 4 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

TOOL=${TOOL:-test.py} exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm_train.sh" "$@"
