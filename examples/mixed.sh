#!/bin/sh
# The 11 tasks of jat-mini before and after it learns gym:CartPole-v1: alone, and mixed with demonstrations of all 11.
# Needs the demonstrations and the agent of cartpole.sh. EPISODES=2 OLD=1 STEPS=20 make it small.
set -eu
cd "$(dirname "$0")"
. ./threads.sh
CARTPOLE=${CARTPOLE:-runs/cartpole} OUT=${OUT:-runs/mixed} OLD=${OLD:-20}
BABYAI="babyai-go-to-obj babyai-go-to-red-ball-grey babyai-open-red-door"
METAWORLD="metaworld-door-close metaworld-door-unlock metaworld-drawer-open metaworld-faucet-close metaworld-faucet-open"
MUJOCO="mujoco-pendulum mujoco-reacher"

# Into the folder that has CartPole's. jat-mini's own demonstrations had seeds from 1,000,000 and 2,000,000.
jat-engine collect --tasks $BABYAI --num_episodes $((OLD * 20)) --noise 0.1 --output_dir "$CARTPOLE/data"
jat-engine collect --tasks $METAWORLD --num_episodes "$OLD" --noise 0.3 --output_dir "$CARTPOLE/data"
jat-engine collect --tasks mujoco-pendulum --num_episodes "$OLD" --noise 0.3 --output_dir "$CARTPOLE/data"
jat-engine collect --tasks mujoco-reacher --num_episodes $((OLD * 4)) --noise 0.2 --output_dir "$CARTPOLE/data"
jat-engine collect --tasks atari-pong --num_episodes "$OLD" --noise 0.1 --output_dir "$CARTPOLE/data"

# Half of the batches are of CartPole. Losses of continuous actions are divided by the actions' variance, roughly, as in
# jat-mini's own training.
jat-engine train --model_name_or_path jat-mini --dataset "$CARTPOLE/data" --output_dir "$OUT/agent" \
    --tasks gym:CartPole-v1 atari-pong $BABYAI $METAWORLD $MUJOCO --sampling_weights gym:CartPole-v1=13 atari-pong=3 \
    --batch_sizes babyai=64 metaworld=8 mujoco=8 --loss_weights metaworld=3 mujoco-pendulum=40 mujoco-reacher=100 \
    --per_device_train_batch_size 8 --max_steps "${STEPS:-800}" --learning_rate 7e-4 \
    --lr_scheduler_type cosine --warmup_steps 20 --action_shuffle 1 --freeze transformer.wpe --bf16 \
    --train_sampling_strategy group_by_length --logging_steps 20 --save_strategy no
for agent in jat-mini "$CARTPOLE/agent" "$OUT/agent"; do
    name=$(case $agent in jat-mini) echo before ;; "$OUT"*) echo mixed ;; *) echo alone ;; esac)
    jat-engine eval --model_name_or_path "$agent" --tasks $BABYAI $METAWORLD $MUJOCO --num_episodes "${EPISODES:-30}" \
        --seed 3000000 --deterministic --output_dir "$OUT/$name"
    jat-engine eval --model_name_or_path "$agent" --tasks atari-pong --num_episodes "${GAMES:-10}" \
        --seed 3000000 --deterministic --output_dir "$OUT/$name"
done
jat-engine eval --model_name_or_path "$OUT/agent" --tasks gym:CartPole-v1 --num_episodes "${EPISODES:-30}" \
    --seed 3000000 --deterministic --output_dir "$OUT/mixed"
