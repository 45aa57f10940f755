#!/usr/bin/env bash
# One node, all its GPUs (PROCESSES=N for another number): launch/torchrun.sh run=recipe_8b run.dir=/data/runs/8b
# More nodes: NODES, NODE_RANK and MASTER_ADDR as well, on every node.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"  # megatron-core orders its kernels by it
rendezvous=(--standalone)
if [ "${NODES:-1}" -gt 1 ]; then
    rendezvous=(--nnodes "$NODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
exec torchrun "${rendezvous[@]}" --nproc-per-node "${PROCESSES:-gpu}" -m megatron_qwen3vl pretrain "$@"
