#!/usr/bin/env bash
# Short classifiers of several widths, all at once, on the GPUs there are: to measure what quantisation costs and how long files take.
#
#   bash benchmarks/train_widths.sh DATA OUTPUT ["0.5 1.0 2.0"] [key=value ...]
#
# The widest network gets a GPU of its own where there are two. Leaves OUTPUT/WIDTH (a run) and OUTPUT/half/WIDTH (a folder that loads:
# weights in half the room, the run's curve beside them). Far from the accuracy that a full run gives: 30 epochs.
set -eu
data=$1 output=$2 widths=${3:-"0.5 1.0 2.0"}
shift $(($# < 3 ? $# : 3))
gpus=$(nvidia-smi -L 2> /dev/null | wc -l)
workers=$((gpus > 0 ? $(nproc) / $(wc -w <<< "$widths") : 0))
mkdir -p "$output"
for width in $widths; do
  device=$([ "$gpus" -gt 1 ] && [ "$width" != "${widths##* }" ] && echo 1 || echo 0)
  CUDA_VISIBLE_DEVICES=$device python3 -W ignore -m mobilevitv2 train "$data" --task classify --model scratch --recipe small-scratch \
    --output "$output/$width" width="$width" epochs=30 batch_size=256 learning_rate=2e-3 warmup_steps=100 unmixed_epochs=8 \
    crop_scale=0.3,1.0 compile=false workers="$workers" eval_every=30 save_every=30 "$@" > "$output/$width.log" 2>&1 &
done
wait
python3 - "$output" $widths << 'PYTHON'
import shutil, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
for width in sys.argv[2:]:
    run, folder = Path(sys.argv[1], width), Path(sys.argv[1], "half", width)
    if not (run / "model").is_dir():
        print(width, "left no model:", Path(sys.argv[1], f"{width}.log").read_text()[-2000:])
        continue
    shutil.copytree(run / "model", folder)
    weights = load_file(folder / "model.safetensors")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(run / "metrics.jsonl", folder)
    print(width, (run / "metrics.jsonl").read_text().splitlines()[-1])
PYTHON
