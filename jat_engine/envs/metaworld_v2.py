"""What Meta-World's v3 and its MuJoCo 3 changed since the published v2 environments on MuJoCo 2.1, changed back.

Found by replaying goals and actions of the published environments in v3; tests hold recorded returns of nine tasks.
What remains is that v3 observes positions one physics step, 2.5 ms, newer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation


def restore_v2(simulator: Any, env_id: str) -> None:
    """Change the v3 environment `simulator` of `env_id`, in place, where it differs from v2."""
    model = simulator.model
    # Convex shapes collide by way of libccd, as in MuJoCo 2. By MuJoCo 3's own routine handle-press and disassemble
    # come out differently.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    # The weld that drags the hand along weighed turning against moving by these two numbers in MuJoCo 2. Since then the
    # model says how much turning counts. v3 says 5, and the hand begins 2 mm elsewhere; here it is 6.8.
    moving, turning = model.body("hand").invweight0
    model.eq_data[model.eq_type == mujoco.mjtEq.mjEQ_WELD, 10] = np.sqrt(turning / moving)
    restore = _CHANGED.get(env_id)
    if restore is not None:
        restore(simulator)


def _reward_open_gripper(simulator: Any) -> None:
    # v3 rewards an open gripper by its opening (observation 3, in [0, 1]) where v2 rewarded a
    # closed one by 1 - opening. `compute_reward` uses that entry for nothing else.
    compute_reward: Callable[[Any, np.ndarray], Any] = simulator.compute_reward

    def with_closed_gripper(action: Any, observation: np.ndarray) -> Any:
        flipped = observation.copy()
        flipped[3] = 1 - flipped[3]
        return compute_reward(action, flipped)

    simulator.compute_reward = with_closed_gripper


def _bent_arm(simulator: Any) -> None:
    # v2's model declared the ball before the arm, so that the position meant for the ball went to
    # three joints of the arm: the ball stayed where the model has it, and the arm began far out on
    # one side. The published policies learned from that start. In v3 the arm comes first: joints
    # 2 to 4 are those, and the velocities then set to zero are entries 3 to 8.
    def bend(position: np.ndarray) -> None:
        qpos, qvel = simulator.data.qpos.copy(), simulator.data.qvel.copy()
        qpos[2:5] = position
        qvel[3:9] = 0
        simulator.set_state(qpos, qvel)

    simulator._set_obj_xyz = bend


def _turned_mug(simulator: Any) -> None:
    # The observation has the orientation of the mug's mesh. MuJoCo aligns a mesh with its axes of
    # inertia, and versions 2 and 3 choose them a quarter turn apart.
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
