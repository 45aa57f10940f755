#!/usr/bin/env bash
# The demonstration, on a fresh machine: environment, the data that its mixtures name, the four stages on two processes, the
# table, and held-out questions to the exported model.
# Arguments are passed on: launch/demo.sh run.dir=/tmp/demo stages.s1.steps=50
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck disable=SC2046  # one name a word
bash launch/data.sh $(sed -n 's|.*\.\./built/\([a-z0-9_]*\)/.*|\1|p' data_recipes/mixtures/{s[0-3],held_out}.yaml | sort -u)
run_dir=runs/demo
for argument in "$@"; do
    case "$argument" in run.dir=*) run_dir="${argument#run.dir=}" ;; esac
done
torchrun --standalone --nproc-per-node "${PROCESSES:-2}" -m megatron_qwen3vl pretrain "$@"
python -m megatron_qwen3vl.demo "$run_dir"
