#!/usr/bin/env bash
# The built-in data: the shards of every domain recipe, under data_recipes/built/. A recipe that is built already is left alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
for recipe in data_recipes/domains/*.yaml; do
    out="data_recipes/built/$(basename "$recipe" .yaml)"
    cmp -s "$recipe" "$out/recipe.yaml" && continue
    rm -rf "$out"
    python -m megatron_qwen3vl data build "$recipe" "$out"
    cp "$recipe" "$out/recipe.yaml"
done
