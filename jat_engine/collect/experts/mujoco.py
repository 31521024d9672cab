"""MuJoCo: controllers from the simulator's own model, where a few lines of control theory are enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium

    from ...envs.tasks import Task
    from .demonstration import Expert


def make_controller(task: Task, env: gymnasium.Env[Any, Any]) -> Expert:
    """The controller of a task in `EXPERT_TASKS`."""
    if task.name == "mujoco-pendulum":
        return BalanceExpert(env, state_cost=(1, 10, 0.1, 0.1))
    if task.name == "mujoco-doublependulum":
        return BalanceExpert(env, state_cost=(1, 10, 10, 0.1, 0.1, 0.1))
    return ReachExpert(env) if task.name == "mujoco-reacher" else SwimExpert(env)


class BalanceExpert:
    """The linear-quadratic regulator of the upright position, from MuJoCo's derivatives."""

    def __init__(self, env: gymnasium.Env[Any, Any], state_cost: tuple[float, ...], action_cost: float = 1.0) -> None:
        import mujoco
        from scipy.linalg import solve_discrete_are

        simulator: Any = env.unwrapped
        model, data = simulator.model, mujoco.MjData(simulator.model)
        mujoco.mj_forward(model, data)
        size, num_actions = 2 * model.nv, model.nu
        step, push = np.zeros((size, size)), np.zeros((size, num_actions))
        integrator = model.opt.integrator
        model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER  # there are no derivatives of RK4
        mujoco.mjd_transitionFD(model, data, 1e-6, True, step, push, None, None)
        model.opt.integrator = integrator
        a, b = np.eye(size), np.zeros((size, num_actions))
        for _ in range(simulator.frame_skip):
            a, b = step @ a, step @ b + push
        cost = np.eye(num_actions) * action_cost
        value = solve_discrete_are(a, b, np.diag(np.array(state_cost, np.float64)), cost)
        self._gain = np.linalg.solve(cost + b.T @ value @ b, b.T @ value @ a)  # [A, 2 nv]
        self._simulator = simulator
        self._space: Any = env.action_space

    def reset(self) -> None:
        """A regulator keeps nothing between steps."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        data = self._simulator.data
        action = -self._gain @ np.concatenate([data.qpos, data.qvel])
        return np.asarray(action.clip(self._space.low, self._space.high), np.float32)

    def executed(self, action: Any) -> None:
        """A regulator keeps nothing between steps."""


class ReachExpert:
    """The arm's inverse kinematics, of both elbows the nearer one, and a proportional-derivative controller."""

    upper, lower = 0.1, 0.11
    """Lengths of the arm, in metres."""
    stiffness, damping = 0.2, 0.035

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._simulator: Any = env.unwrapped

    def reset(self) -> None:
        """A controller keeps nothing between steps."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        data = self._simulator.data
        action = self.stiffness * self._error(data.qpos[:2], data.qpos[2:4]) - self.damping * data.qvel[:2]
        return np.asarray(action.clip(-1.0, 1.0), np.float32)

    def executed(self, action: Any) -> None:
        """A controller keeps nothing between steps."""

    def _error(self, joints: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Radians [2] from the joints' angles to those that put the fingertip on the target."""
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
    """A wave along the body: both joints follow a sine, the second a fifth of a period behind, and keep the course."""

    amplitude, frequency, lag, steering = 0.8, 4.0, 1.2, 0.4
    """Of the wave; radians a second; radians; torque a radian off course."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._simulator: Any = env.unwrapped

    def reset(self) -> None:
        """The wave begins anew with the simulator's clock."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        data = self._simulator.data
        phase = self.frequency * data.time
        wave = self.amplitude * np.sin([phase, phase - self.lag])
        front, first, second = data.qpos[2:5]
        heading = front + (2 * first + second) / 3  # mean of the three links
        return np.asarray((wave + self.steering * heading).clip(-1.0, 1.0), np.float32)

    def executed(self, action: Any) -> None:
        """The wave follows the clock, whatever was executed."""
