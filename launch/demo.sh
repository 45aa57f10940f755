#!/usr/bin/env bash
# The demonstration, on a fresh machine: environment, data, the four stages on two processes, the table, held-out reading.
# Arguments are passed on: launch/demo.sh run.dir=/tmp/demo stages.s1.steps=50
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
bash launch/data.sh
run_dir=runs/demo
for argument in "$@"; do
    case "$argument" in run.dir=*) run_dir="${argument#run.dir=}" ;; esac
done
torchrun --standalone --nproc-per-node "${PROCESSES:-2}" -m megatron_qwen3vl pretrain "$@"
python -m megatron_qwen3vl.demo "$run_dir"
