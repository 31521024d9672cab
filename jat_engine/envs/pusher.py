"""`Pusher-v4` on today's MuJoCo.

Gymnasium's own refuses MuJoCo 3, where the arm passes through the object that it should push; in `Pusher-v5` it nearly
does. Here it is `Pusher-v5` with v4's model file, v4's reward, and the contacts of MuJoCo 2:

- `body_invweight0` decides how hard a contact is. MuJoCo 3 computes it for a body on slide joints from the body's mass
  alone, 1e-8 kg here; MuJoCo 2 counted the joints' armature of 0.04 kg. Contacts became five million times softer.
- Convex shapes collide by way of libccd, as they did, not by MuJoCo's own routine.

Tests hold a recorded episode of `Pusher-v4` on MuJoCo 2.3.7 in which the object is pushed.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

_FINGERTIP, _OBJECT, _GOAL = slice(14, 17), slice(17, 20), slice(20, 23)
"""Positions [3], in metres, within the observation [23]."""


def make_pusher(env_id: str, **rendering: Any) -> gym.Env[np.ndarray, np.ndarray]:
    """Build it from a `Pusher-v5`. Observation: float64 [23]. Action: [7]."""
    env: gym.Env[np.ndarray, np.ndarray] = gym.make(
        env_id, xml_file="pusher.xml", disable_env_checker=True, **rendering
    )
    restore_contacts(env.unwrapped.model)  # type: ignore[attr-defined]
    return PusherReward(env)


def restore_contacts(model: Any) -> None:
    """Give the `MjModel` of pusher.xml the contacts of MuJoCo 2, in place."""
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    body = model.body("object")
    slides = slice(int(body.dofadr[0]), int(body.dofadr[0] + body.dofnum[0]))
    inverse_mass = 1 / (float(body.mass[0]) + model.dof_armature[slides])
    model.dof_invweight0[slides] = inverse_mass
    # The mean over three directions, in one of which the object cannot move.
    model.body_invweight0[body.id] = (inverse_mass.sum() / 3, 0.0)


class PusherReward(gym.Wrapper[Any, Any, Any, Any]):
    """v4's reward: of the positions before the step, where v5's is of those after it.

    reward = -|object - goal| - 0.1 |action|^2 - 0.5 |object - fingertip|
    """

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self._before: np.ndarray | None = None

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._before = observation.copy()
        return observation, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self._before is not None, "reset() comes before step()"
        fingertip, thing, goal = self._before[_FINGERTIP], self._before[_OBJECT], self._before[_GOAL]
        near = -float(np.linalg.norm(thing - fingertip))
        distance = -float(np.linalg.norm(thing - goal))
        control = -float(np.square(action).sum())
        observation, _, terminated, truncated, info = self.env.step(action)
        self._before = observation.copy()
        info |= {"reward_dist": distance, "reward_ctrl": 0.1 * control, "reward_near": 0.5 * near}
        return observation, distance + 0.1 * control + 0.5 * near, terminated, truncated, info
