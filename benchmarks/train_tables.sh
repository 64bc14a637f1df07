#!/usr/bin/env bash
# The embedded segmenter and detector, and the tables of CamVid and BCCD in docs/results.md: small runs side by side, dealt out to the
# GPUs there are.
#
#   bash benchmarks/train_tables.sh DATA OUTPUT [RUN ...]
#
# DATA holds the folders pets, camvid and bccd. RUN is some of pets, camvid, camvid-train-val, bccd, pet-heads (all, where none is
# named). All begin with the embedded classifier's trunk, pet-heads with what OUTPUT/pets made of it: masks of 733 pictures teach where
# an animal ends, and no picture of a validation split is among them. OUTPUT/RUN.log is a run's log, OUTPUT/RUN the run.
# SETTINGS="epochs=1 ..." is put behind every command, to try it out.
set -eu
data=$1 output=$2
shift 2
runs=("$@")
[ ${#runs[@]} -gt 0 ] || runs=(pets camvid camvid-train-val bccd pet-heads)
gpus=$(python3 -c "import torch; print(max(1, torch.cuda.device_count()))")
workers=$((($(nproc) + ${#runs[@]} - 1) / ${#runs[@]}))
number=0
start() { # run, folder of the data, arguments of `mobilevitv2 train` ...
  local run=$1 folder=$2
  shift 2
  # shellcheck disable=SC2086  # settings are words
  CUDA_VISIBLE_DEVICES=$((number % gpus)) python3 -W ignore -m mobilevitv2 train "$data/$folder" "$@" \
    --output "$output/$run" workers=$workers ${SETTINGS:-} > "$output/$run.log" 2>&1 &
  number=$((number + 1))
}
trunk=(--model mobilevitv2-0.75-objects112)
streets=(--task segment "${trunk[@]}" image_size=512,640 eval_size=720,960 short_side=400,1000 long_side=1400 output_stride=8
  atrous_rates=12,24,36 largest_class=1)
mkdir -p "$output"
for run in "${runs[@]}"; do
  case $run in
    pets) start pets pets --task segment "${trunk[@]}" epochs=90 batch_size=32 aspp_out_channels=96 && first=$! ;;
    camvid) start camvid camvid "${streets[@]}" epochs=65 eval_every=13 class_balance=0.5 ;;
    camvid-train-val) # the split that most published figures were trained on; by the test pictures nothing is chosen
      mkdir -p "$output/camvid-train-val-data"
      cp -r "$data/camvid/id2label.json" "$data/camvid/train" "$data/camvid/test" "$output/camvid-train-val-data"
      cp -r "$data/camvid/val/." "$output/camvid-train-val-data/train"
      data=$output start camvid-train-val camvid-train-val-data "${streets[@]}" epochs=50 eval_every=50 class_balance=0.25 \
        validation_fraction=0 ;;
    bccd) start bccd bccd --task detect "${trunk[@]}" epochs=120 batch_size=16 image_size=480,640 finest_stride=8 \
      anchor_scales=0.05,0.9 ;;
    pet-heads) [ -z "${first:-}" ] || wait "$first"
      start pet-heads pets --task detect --model "$output/pets/model" epochs=170 eval_every=10 image_size=384 \
        zoom_out=0.3 learning_rate=0.002 ;;
    *) echo "unknown run $run" >&2; exit 1 ;;
  esac
done
wait
echo "all runs took $SECONDS s"
