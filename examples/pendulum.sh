#!/bin/sh
# gym:Pendulum-v1 from jat-mini, with 200 demonstrations of an energy controller.
# Sizes may be given in the environment: DEMONSTRATIONS=10 STEPS=20 EPISODES=3 OUT=/tmp/pendulum sh pendulum.sh
set -eu
cd "$(dirname "$0")"
. ./threads.sh
OUT=${OUT:-runs/pendulum}

jat-engine collect --tasks gym:Pendulum-v1 --expert pendulum:swing_up --noise 1.5 \
    --num_episodes "${DEMONSTRATIONS:-200}" --output_dir "$OUT/data"
jat-engine train --model_name_or_path jat-mini --dataset "$OUT/data" --tasks gym:Pendulum-v1 --output_dir "$OUT/agent" \
    --per_device_train_batch_size 8 --max_steps "${STEPS:-500}" --learning_rate 1e-3 \
    --lr_scheduler_type cosine --warmup_steps 20 --action_shuffle 1 --freeze transformer.wpe --bf16 \
    --logging_steps 20 --save_strategy no
for dtype in float32 bfloat16 int8; do
    jat-engine eval --model_name_or_path "$OUT/agent" --tasks gym:Pendulum-v1 --num_episodes "${EPISODES:-100}" \
        --deterministic --dtype $dtype --output_dir "$OUT/$dtype"
done
