"""Description of a server: what `/config` shows, and clients are told when they connect."""

from __future__ import annotations

import functools
from typing import Any

from ..engine.engine import JatEngine
from ..observation import OBSERVATION_KEYS
from ..runs.settings import machine_settings
from .requests import Settings
from .spaces import describe_space

MODEL_SIZES = ("max_continuous_size", "max_discrete_value", "vocab_size", "max_position_embeddings")
"""Fields of `JatConfig` that a description has under "sizes": by them a client checks whether a task fits the model."""

_machine = functools.cache(machine_settings)


def describe(
    engine: JatEngine | None, model: str, max_sessions: int, defaults: Settings, weights_sha256: str | None = None
) -> dict[str, Any]:
    """Return JSON values about a server.

    Args:
        engine: None while it is loaded.
        model: name of the checkpoint.
        max_sessions: most open sessions.
        defaults: settings of episodes as far as clients give none.
        weights_sha256: of the checkpoint, by which evaluations know it; None if it is not known.
    """
    from .. import __version__

    about: dict[str, Any] = {
        "server": "jat-engine",
        "version": __version__,
        "model": model,
        "observation_keys": list(OBSERVATION_KEYS),
        "max_sessions": max_sessions,
        "task": defaults.task,
        "weights_sha256": weights_sha256,
        **_machine(),
        "action_space": None if defaults.space is None else describe_space(defaults.space),
    }
    if engine is not None:
        choice = engine.choice
        about |= {
            "backend": str(choice.backend),
            "dtype": str(choice.dtype),
            "device": str(choice.device),
            "max_context_window": engine.config.max_context_tokens,
            "sizes": {name: getattr(engine.config, name) for name in MODEL_SIZES},
        }
    return about
