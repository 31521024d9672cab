"""`Pusher-v4` on MuJoCo 3.

Gymnasium's `Pusher-v4` does not run on MuJoCo 3, where the arm passes through the object that it should push; in
`Pusher-v5` it nearly does. This module changes `Pusher-v5`: it takes v4's model file, v4's reward, and restores the
contacts of MuJoCo 2:

- `body_invweight0` determines the stiffness of a contact. For a body on slide joints MuJoCo 3 computes it from the mass
  of the body alone, here 1e-8 kg. MuJoCo 2 also counted the armature of the joints, 0.04 kg. Contacts became five
  million times softer.
- Convex shapes collide with libccd, as in MuJoCo 2, not with MuJoCo 3's own routine.

A test compares with a recorded episode of `Pusher-v4` on MuJoCo 2.3.7 in which the object is pushed.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

_FINGERTIP, _OBJECT, _GOAL = slice(14, 17), slice(17, 20), slice(20, 23)
"""Entries of the observation [23] that hold positions [3], in metres."""


def make_pusher(env_id: str, **options: Any) -> gym.Env[np.ndarray, np.ndarray]:
    """Build a `Pusher-v4`. Observations are float64 [23], actions [7].

    Args:
        env_id: "Pusher-v5", which is changed to v4.
        **options: passed to `gymnasium.make`.
    """
    env: gym.Env[np.ndarray, np.ndarray] = gym.make(env_id, xml_file="pusher.xml", disable_env_checker=True, **options)
    restore_contacts(env.unwrapped.model)  # type: ignore[attr-defined]
    return PusherReward(env)


def restore_contacts(model: Any) -> None:
    """Restore the contacts of MuJoCo 2 in the `MjModel` of pusher.xml, in place."""
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    body = model.body("object")
    slides = slice(int(body.dofadr[0]), int(body.dofadr[0] + body.dofnum[0]))
    inverse_mass = 1 / (float(body.mass[0]) + model.dof_armature[slides])
    model.dof_invweight0[slides] = inverse_mass
    # The mean over three directions, in one of which the object cannot move.
    model.body_invweight0[body.id] = (inverse_mass.sum() / 3, 0.0)


class PusherReward(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper with v4's reward, which is computed from the positions before the step; v5 uses those after it.

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
        if self._before is None:
            raise gym.error.ResetNeeded("step(): call reset() first")
        fingertip, thing, goal = self._before[_FINGERTIP], self._before[_OBJECT], self._before[_GOAL]
        near = -float(np.linalg.norm(thing - fingertip))
        distance = -float(np.linalg.norm(thing - goal))
        control = -float(np.square(action).sum())
        observation, _, terminated, truncated, info = self.env.step(action)
        self._before = observation.copy()
        info |= {"reward_dist": distance, "reward_ctrl": 0.1 * control, "reward_near": 0.5 * near}
        return observation, distance + 0.1 * control + 0.5 * near, terminated, truncated, info
