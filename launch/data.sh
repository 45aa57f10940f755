#!/usr/bin/env bash
# The built-in data: the shards of the named domain recipes, of all without a name, under data_recipes/built/. A recipe that
# is built already is left alone: launch/data.sh numbers captions
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -eq 0 ]; then
    for recipe in data_recipes/domains/*.yaml; do set -- "$@" "$(basename "$recipe" .yaml)"; done
fi
for domain in "$@"; do
    recipe="data_recipes/domains/$domain.yaml" out="data_recipes/built/$domain"
    cmp -s "$recipe" "$out/recipe.yaml" && continue
    rm -rf "$out"
    python -m megatron_qwen3vl data build "$recipe" "$out"
    cp "$recipe" "$out/recipe.yaml"
done
