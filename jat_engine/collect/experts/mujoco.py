"""Play MuJoCo tasks for which a few lines of control theory are enough, with controllers from the simulator's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium

    from ...envs import Task
    from .demonstration import Expert


def make_controller(task: Task, env: gymnasium.Env[Any, Any]) -> Expert:
    """Make the controller of a MuJoCo task.

    Args:
        task: a MuJoCo task of `EXPERT_TASKS`.
        env: an environment of it.
    """
    if task.name == "mujoco-pendulum":
        return BalanceExpert(env, state_cost=(1, 10, 0.1, 0.1))
    if task.name == "mujoco-doublependulum":
        return BalanceExpert(env, state_cost=(1, 10, 10, 0.1, 0.1, 0.1))
    return ReachExpert(env) if task.name == "mujoco-reacher" else SwimExpert(env)


class BalanceExpert:
    """The linear-quadratic regulator of the upright position, from MuJoCo's derivatives.

    Args:
        env: the pendulum's environment.
        state_cost: diagonal of the cost of positions and velocities, 2 nv numbers.
        action_cost: cost of each action.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], state_cost: tuple[float, ...], action_cost: float = 1.0) -> None:
        import mujoco
        from scipy.linalg import solve_discrete_are

        simulator: Any = env.unwrapped
        model, data = simulator.model, mujoco.MjData(simulator.model)
        mujoco.mj_forward(model, data)

        # Linearise one simulator step around the upright position: x' = step x + push u.
        size, num_actions = 2 * model.nv, model.nu
        step, push = np.zeros((size, size)), np.zeros((size, num_actions))
        integrator = model.opt.integrator
        model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER  # MuJoCo has no derivatives of RK4
        mujoco.mjd_transitionFD(model, data, 1e-6, True, step, push, None, None)
        model.opt.integrator = integrator

        # One environment step repeats it `frame_skip` times; solve the Riccati equation for its gain.
        a, b = np.eye(size), np.zeros((size, num_actions))
        for _ in range(simulator.frame_skip):
            a, b = step @ a, step @ b + push
        cost = np.eye(num_actions) * action_cost
        value = solve_discrete_are(a, b, np.diag(np.array(state_cost, np.float64)), cost)
        self._gain = np.linalg.solve(cost + b.T @ value @ b, b.T @ value @ a)  # [A, 2 nv]
        self._simulator = simulator
        self._space: Any = env.action_space

    def reset(self) -> None:
        """Do nothing: the regulator has no state."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """Return -K x, float32 [A], clipped to the action space. See `Expert.act`."""
        data = self._simulator.data
        action = -self._gain @ np.concatenate([data.qpos, data.qvel])
        return np.asarray(action.clip(self._space.low, self._space.high), np.float32)

    def executed(self, action: Any) -> None:
        """Do nothing: the regulator has no state."""


class ReachExpert:
    """Inverse kinematics of the two-link arm and a proportional-derivative controller.

    Of the two elbow positions that reach the target, the controller moves to the nearer one.

    Args:
        env: the reacher's environment.
    """

    upper, lower = 0.1, 0.11
    """Lengths of the arm, in metres."""
    stiffness, damping = 0.2, 0.035

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._simulator: Any = env.unwrapped

    def reset(self) -> None:
        """Do nothing: the controller has no state."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the joints' torques, float32 [2], clipped to [-1, 1]. See `Expert.act`."""
        data = self._simulator.data
        action = self.stiffness * self._error(data.qpos[:2], data.qpos[2:4]) - self.damping * data.qvel[:2]
        return np.asarray(action.clip(-1.0, 1.0), np.float32)

    def executed(self, action: Any) -> None:
        """Do nothing: the controller has no state."""

    def _error(self, joints: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the angles, in radians [2], from the joints to a position with the fingertip on the target.

        Args:
            joints: angles in radians, [2].
            target: position in metres, [2].
        """
        distance = np.clip(np.hypot(*target), self.lower - self.upper + 1e-3, self.lower + self.upper - 1e-4)
        cosine = (distance**2 - self.upper**2 - self.lower**2) / (2 * self.upper * self.lower)
        errors = []
        for elbow in (np.arccos(cosine), -np.arccos(cosine)):
            bend = np.arctan2(self.lower * np.sin(elbow), self.upper + self.lower * np.cos(elbow))
            shoulder = np.arctan2(target[1], target[0]) - bend
            turn = (shoulder - joints[0] + np.pi) % (2 * np.pi) - np.pi
            errors.append(np.array([turn, elbow - joints[1]]))
        return min(errors, key=lambda error: float(np.abs(error).max()))


class SwimExpert:
    """A wave along the body: both joints follow a sine, the second 1.2 radians later, and correct the heading.

    Args:
        env: the swimmer's environment.
    """

    amplitude, frequency, lag, steering = 0.8, 4.0, 1.2, 0.4
    """Torque of the wave; radians per second; radians; torque per radian of heading."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._simulator: Any = env.unwrapped

    def reset(self) -> None:
        """Do nothing: the wave follows the simulator's clock."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the joints' torques, float32 [2], clipped to [-1, 1]. See `Expert.act`."""
        data = self._simulator.data
        phase = self.frequency * data.time
        wave = self.amplitude * np.sin([phase, phase - self.lag])
        front, first, second = data.qpos[2:5]
        heading = front + (2 * first + second) / 3  # mean of the three links
        return np.asarray((wave + self.steering * heading).clip(-1.0, 1.0), np.float32)

    def executed(self, action: Any) -> None:
        """Do nothing: the wave follows the simulator's clock."""
