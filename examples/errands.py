"""Task "errands": missions in words of one's own, in a room of BabyAI, and its expert, minigrid's bot."""

from __future__ import annotations

from typing import Any

import gymnasium
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc, PickupInstr

from jat_engine.collect.experts.babyai import BotExpert
from jat_engine.envs import register_task
from jat_engine.envs.babyai import FlatObservation

THINGS = ("ball", "box", "key")


class Visit(GoToInstr):
    """Instruction to stand in front of a thing."""

    def surface(self, env: Any) -> str:
        """Return the mission in words."""
        return f"pay a visit to the {self.desc.type}"


class Fetch(PickupInstr):
    """Instruction to pick up a thing."""

    def surface(self, env: Any) -> str:
        """Return the mission in words."""
        return f"fetch me the {self.desc.type}, please"


class Errands(RoomGridLevel):
    """Room with a ball, a box and a key of any colours, and one of six missions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(num_rows=1, num_cols=1, room_size=6, **options)

    def gen_mission(self) -> None:
        """Place the things and the agent, and choose the mission."""
        self.place_agent()
        for thing in THINGS:
            self.add_object(0, 0, thing)
        self.check_objs_reachable()
        kind = self._rand_elem((Visit, Fetch))
        self.instrs = kind(ObjDesc(self._rand_elem(THINGS)))


def make(render_mode: str | None = None, max_episode_steps: int | None = None) -> gymnasium.Env[Any, Any]:
    """Build the environment, with observations as those of the published BabyAI tasks."""
    return FlatObservation(Errands(render_mode=render_mode, max_steps=max_episode_steps))


def bot(env: gymnasium.Env[Any, Any]) -> BotExpert:
    """Bot of minigrid, which plans on the map of what the agent has seen."""
    return BotExpert(env)


register_task("errands", make, domain="examples", success="positive_return")
