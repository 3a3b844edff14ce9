#!/usr/bin/env bash
# Pre-trains the quickstart's model with each form of the objective, fine-tunes each on ethanol with the same budget,
# and prints the errors on the 1,000 test frames. Two runs at a time, one thread each.
# Usage: benchmarks/objectives.sh OUT [SEED]
set -euo pipefail
out=${1:?usage: benchmarks/objectives.sh OUT [SEED]}
seed=${2:-0}
export OMP_NUM_THREADS=1
forcewell=$(dirname "$0")/../.venv/bin/forcewell
bundled=$(dirname "$0")/../src/forcewell/bundled
mkdir -p "$out"

arm() { # NAME, then --set changes of the pre-training
    local name=$1; shift
    $forcewell pretrain quickstart --out "$out/$name/pretraining" --set seed=$seed "$@"
    $forcewell finetune quickstart-finetune --from "$out/$name/pretraining/model.safetensors" --out "$out/$name/ethanol" --set seed=$seed
}
scratch() {
    $forcewell pretrain quickstart-finetune --out "$out/scratch/ethanol" --set seed=$seed \
        --set "model={encoder: {channels: 64, layers: 3, heads: 4, radial: 32}}"
}
run() { "$@" >"$out/$seed-$RANDOM.log" 2>&1; }

# et-ore sees the same number of samples, all of them labelled; et-ore-matched the same number of labels.
labelled="data=[{path: 'bundled:qm7x'}]"
both="data=[{path: 'bundled:qm9', weight: 4}, {path: 'bundled:qm7x', weight: 5}]"
( run arm et-ore --set objectives=et-ore --set "$labelled" --set training.steps=500
  run arm et-oreo-faithful --set objectives=et-oreo-faithful --set "$both" --set training.steps=500
  run scratch ) &
( run arm et-oreo --set "$both" --set training.steps=500
  run arm et-ore-matched --set objectives=et-ore --set "$labelled" --set training.steps=278 ) &
wait
for name in scratch et-ore et-ore-matched et-oreo-faithful et-oreo; do
    printf '%s: ' "$name"
    $forcewell evaluate "$out/$name/ethanol/model.safetensors" "$bundled/rmd17_ethanol_test_01.npz" | grep force_mae | head -1
done
