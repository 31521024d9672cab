"""JAT agents: engine, reference model, processor, and their errors.

Each public name is imported at its first use. An engine needs neither transformers' models nor its processors, and
importing those takes longer than loading a checkpoint. JAT is registered with transformers' auto classes by
`import jat_engine.auto`, and by the first use of `JatModel`, `JatProcessor` or this package's auto classes.

Example:
    >>> from jat_engine import JatEngine
    >>> engine = JatEngine.from_pretrained("jat-mini")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .auto import AutoConfig, AutoModelForCausalLM, AutoProcessor
    from .backends.options import EngineOptions
    from .config import JatConfig
    from .engine.batch import AgentBatch
    from .engine.engine import JatEngine
    from .engine.kv_cache import CacheStats
    from .engine.session import AgentSession
    from .engine.stats import EngineStats
    from .errors import (
        BatchError,
        CacheFullError,
        CheckpointError,
        DataError,
        InputError,
        NativeModuleWarning,
        SessionError,
    )
    from .model.modeling import JatModel
    from .model.output import JatOutput
    from .model.processing import JatProcessor
    from .model.session import ModelSession
    from .policy.policy import JatPolicy
    from .text.request import StreamedToken
    from .text.score import TextScore

_MODULES = {
    "AgentBatch": "engine.batch",
    "AgentSession": "engine.session",
    "AutoConfig": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoProcessor": "auto",
    "BatchError": "errors",
    "CacheFullError": "errors",
    "CacheStats": "engine.kv_cache",
    "CheckpointError": "errors",
    "DataError": "errors",
    "EngineOptions": "backends.options",
    "EngineStats": "engine.stats",
    "InputError": "errors",
    "JatConfig": "config",
    "JatEngine": "engine.engine",
    "JatModel": "auto",
    "JatOutput": "model.output",
    "JatPolicy": "policy.policy",
    "JatProcessor": "auto",
    "ModelSession": "model.session",
    "NativeModuleWarning": "errors",
    "SessionError": "errors",
    "StreamedToken": "text.request",
    "TextScore": "text.score",
}

__all__ = [
    "AgentBatch",
    "AgentSession",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoProcessor",
    "BatchError",
    "CacheFullError",
    "CacheStats",
    "CheckpointError",
    "DataError",
    "EngineOptions",
    "EngineStats",
    "InputError",
    "JatConfig",
    "JatEngine",
    "JatModel",
    "JatOutput",
    "JatPolicy",
    "JatProcessor",
    "ModelSession",
    "NativeModuleWarning",
    "SessionError",
    "StreamedToken",
    "TextScore",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next use finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
