#!/bin/sh
# Missions in words of one's own, from jat-mini, with 8000 demonstrations of minigrid's bot.
# Sizes may be given in the environment: DEMONSTRATIONS=50 STEPS=20 EPISODES=3 OUT=/tmp/errands sh errands.sh
set -eu
cd "$(dirname "$0")"
. ./threads.sh
OUT=${OUT:-runs/errands}

jat-engine collect --task_module errands --tasks errands --expert errands:bot --noise 0.1 \
    --num_episodes "${DEMONSTRATIONS:-8000}" --output_dir "$OUT/data"
jat-engine train --model_name_or_path jat-mini --task_module errands --dataset "$OUT/data" --tasks errands \
    --output_dir "$OUT/agent" --per_device_train_batch_size 64 --max_steps "${STEPS:-2500}" --learning_rate 1e-3 \
    --lr_scheduler_type cosine --warmup_steps 20 --action_shuffle 1 --freeze transformer.wpe --bf16 \
    --train_sampling_strategy group_by_length --logging_steps 20 --save_strategy no
for dtype in float32 bfloat16 int8; do
    jat-engine eval --model_name_or_path "$OUT/agent" --task_module errands --tasks errands \
        --num_episodes "${EPISODES:-100}" --deterministic --dtype $dtype --output_dir "$OUT/$dtype"
done
