#!/bin/sh
# gym:CartPole-v1 from jat-mini, with 100 demonstrations of a linear controller.
# Sizes may be given in the environment: DEMONSTRATIONS=10 STEPS=20 EPISODES=3 OUT=/tmp/cartpole sh cartpole.sh
set -eu
cd "$(dirname "$0")"
. ./threads.sh
OUT=${OUT:-runs/cartpole}

jat-engine collect --tasks gym:CartPole-v1 --expert cartpole:balance --noise 0.2 \
    --num_episodes "${DEMONSTRATIONS:-100}" --output_dir "$OUT/data"
jat-engine train --model_name_or_path jat-mini --dataset "$OUT/data" --tasks gym:CartPole-v1 --output_dir "$OUT/agent" \
    --per_device_train_batch_size 8 --max_steps "${STEPS:-400}" --learning_rate 7e-4 \
    --lr_scheduler_type cosine --warmup_steps 20 --action_shuffle 1 --freeze transformer.wpe --bf16 \
    --logging_steps 20 --save_strategy no
for dtype in float32 bfloat16 int8; do
    jat-engine eval --model_name_or_path "$OUT/agent" --tasks gym:CartPole-v1 --num_episodes "${EPISODES:-100}" \
        --deterministic --dtype $dtype --output_dir "$OUT/$dtype"
done
