#!/usr/bin/env bash
# Our classifier and timm's by the same recipe, each on a GPU of its own, for as many epochs as fit into a time.
#
#   bash benchmarks/train_pair.sh DATA OUTPUT SECONDS [key=value ...]
#
# First three epochs of each tell the speed; the slower one sets the number of epochs for both.
set -eu
data=$1 output=$2 limit=$3
shift 3
here=$(dirname "$0")
start=$SECONDS
both() { # folder, settings ...
  local folder=$1 device=0
  shift
  for model in ours timm; do
    CUDA_VISIBLE_DEVICES=$device python3 -W ignore "$here/classifier_beside_timm.py" "$data" --model $model \
      --output "$folder/$model" "$@" > "$folder-$model.log" 2>&1 &
    device=$((device + 1))
  done
  wait
}
mkdir -p "$output"
both "$output/probe" "$@" epochs=3 warmup_steps=10 unmixed_epochs=0
epochs=$(python3 - "$output/probe" $((limit - (SECONDS - start))) <<'PYTHON'
import json, sys
from pathlib import Path
rates, ready = [], []
for model in ("ours", "timm"):
    lines = [json.loads(line) for line in (Path(sys.argv[1]) / model / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "grad_norm" in line]
    rates.append((logs[-1]["epoch"] - logs[0]["epoch"]) / (logs[-1]["seconds"] - logs[0]["seconds"]))
    print(model, "epochs a second:", rates[-1], "first epoch after", logs[0]["seconds"], file=sys.stderr)
# 70 s for the second start (compiled kernels are cached) and the final evaluation, 4 % for those in between.
print(int(min(rates) * (int(sys.argv[2]) - 70) * 0.96))
PYTHON
)
echo "$epochs epochs for both, after $((SECONDS - start)) s"
both "$output/full" "$@" epochs="$epochs"
echo "done after $((SECONDS - start)) s"
