#!/bin/sh
# A game of pictures with its own maker, from jat-mini, with 400 demonstrations of a player that reads the game's state.
# Sizes may be given in the environment: DEMONSTRATIONS=10 STEPS=20 EPISODES=3 OUT=/tmp/catch sh catch.sh
set -eu
cd "$(dirname "$0")"
. ./threads.sh
OUT=${OUT:-runs/catch}

jat-engine collect --task_module catch --tasks catch --expert catch:catcher --noise 0.2 \
    --num_episodes "${DEMONSTRATIONS:-400}" --output_dir "$OUT/data"
jat-engine train --model_name_or_path jat-mini --task_module catch --dataset "$OUT/data" --tasks catch \
    --output_dir "$OUT/agent" --per_device_train_batch_size 8 --max_steps "${STEPS:-800}" --learning_rate 7e-4 \
    --lr_scheduler_type cosine --warmup_steps 20 --action_shuffle 1 --freeze transformer.wpe --bf16 \
    --logging_steps 20 --save_strategy no
jat-engine eval --model_name_or_path "$OUT/agent" --task_module catch --tasks catch --num_episodes "${EPISODES:-50}" \
    --deterministic --dtype float32 --output_dir "$OUT/float32"
