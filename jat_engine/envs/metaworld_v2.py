"""Reverts of the changes that Meta-World v3 and MuJoCo 3 made to the published v2 environments on MuJoCo 2.1.

The changes were found by replaying goals and actions of the published environments in v3. Tests compare the returns of
nine tasks with recorded ones. One difference remains: v3 observes positions one physics step (2.5 ms) later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation


def restore_v2(simulator: Any, env_id: str) -> None:
    """Make a Meta-World v3 environment behave like its v2 version, in place.

    Args:
        simulator: the environment.
        env_id: its id, such as "basketball-v3".
    """
    model = simulator.model
    # Collide convex shapes with libccd, as in MuJoCo 2. With MuJoCo 3's own routine handle-press and disassemble have
    # other results.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)

    # A weld constraint moves the hand. MuJoCo 2 weighed its rotation against its translation by these two numbers,
    # which gives 6.8. In MuJoCo 3 the model sets the weight: v3 has 5, which starts the hand 2 mm away.
    moving, turning = model.body("hand").invweight0
    model.eq_data[model.eq_type == mujoco.mjtEq.mjEQ_WELD, 10] = np.sqrt(turning / moving)

    restore = _CHANGED.get(env_id)
    if restore is not None:
        restore(simulator)


def _reward_open_gripper(simulator: Any) -> None:
    # v3 rewards an open gripper by its opening (observation 3, in [0, 1]); v2 rewarded a closed one by 1 - opening.
    # `compute_reward` uses that entry for nothing else.
    compute_reward: Callable[[Any, np.ndarray], Any] = simulator.compute_reward

    def with_closed_gripper(action: Any, observation: np.ndarray) -> Any:
        flipped = observation.copy()
        flipped[3] = 1 - flipped[3]
        return compute_reward(action, flipped)

    simulator.compute_reward = with_closed_gripper


def _bent_arm(simulator: Any) -> None:
    # v2's model declared the ball before the arm, so the position meant for the ball was written to three joints of
    # the arm: the ball stayed at its place in the model, and the arm started far to one side. The published policies
    # learned from that start. In v3 the arm comes first: these joints are 2 to 4, and the velocities that v2 set to
    # zero are entries 3 to 8.
    def bend(position: np.ndarray) -> None:
        qpos, qvel = simulator.data.qpos.copy(), simulator.data.qvel.copy()
        qpos[2:5] = position
        qvel[3:9] = 0
        simulator.set_state(qpos, qvel)

    simulator._set_obj_xyz = bend


def _turned_mug(simulator: Any) -> None:
    # The observation contains the orientation of the mug's mesh. MuJoCo aligns a mesh with its axes of inertia, and
    # versions 2 and 3 choose them a quarter turn apart.
    turn = Rotation.from_euler("z", 90, degrees=True)

    def turned() -> np.ndarray:
        mug = simulator.data.geom("mug").xmat.reshape(3, 3)
        return np.asarray((Rotation.from_matrix(mug) * turn).as_quat())

    simulator._get_quat_objects = turned


_CHANGED: dict[str, Callable[[Any], None]] = {
    "basketball-v3": _bent_arm,
    "button-press-topdown-wall-v3": _reward_open_gripper,
    "coffee-pull-v3": _turned_mug,
    "coffee-push-v3": _turned_mug,
}
